#include "model/parameters.h"

#include <numeric>
#include <utility>

#include "base/error.h"
#include "base/hash.h"

namespace t2r::model {
torch::Tensor ParameterSet::add(const std::string& name,
                                std::vector<int64_t> shape,
                                int64_t group,
                                bool decays) {
  const int64_t rows = shape.front();
  shape.erase(shape.begin());
  return add_stacked({name}, {rows}, std::move(shape), group, decays);
}

torch::Tensor ParameterSet::add_stacked(const std::vector<std::string>& names,
                                        const std::vector<int64_t>& rows,
                                        std::vector<int64_t> row_shape,
                                        int64_t group,
                                        bool decays) {
  require(names.size() == rows.size(), "add_stacked: one height per name");
  Parameter parameter;
  int64_t height = 0;
  for (size_t i = 0; i < names.size(); ++i) {
    parameter.pieces.push_back({names[i], height, height + rows[i]});
    height += rows[i];
  }
  row_shape.insert(row_shape.begin(), height);
  parameter.value = torch::empty(row_shape, torch::TensorOptions(device_).dtype(torch::kFloat32))
                        .requires_grad_(true);
  parameter.group = group;
  parameter.decays = decays;
  parameters_.push_back(parameter);
  return parameter.value;
}

int64_t ParameterSet::num_scalars(bool only_new) const {
  int64_t count = 0;
  for (const Parameter& parameter : parameters_) {
    if (!only_new || parameter.pieces.front().is_new) count += parameter.value.numel();
  }
  return count;
}

void ParameterSet::mark_last_as_new() {
  for (ParameterPiece& piece : parameters_.back().pieces) piece.is_new = true;
}

void ParameterSet::move_to(const Placement& placement) {
  const torch::NoGradGuard no_grad;
  for (Parameter& parameter : parameters_)
    parameter.value.set_data(parameter.value.detach().to(placement.device, placement.dtype));
}

std::string ParameterSet::content_hash() const {
  Hasher hasher;
  for (const Parameter& parameter : parameters_) {
    const torch::Tensor host = parameter.exact_value().cpu().contiguous();
    hasher.update(host.data_ptr(), host.nbytes());
  }
  return hasher.hex();
}

ParameterArena::ParameterArena(ParameterSet& parameters, const Placement& placement)
    : parameters_(parameters) {
  std::vector<Parameter>& all = parameters.all();
  int64_t size = 0;
  for (size_t i = all.size(); i-- > 0;) {
    slices_.push_back({i, size, all[i].value.numel()});
    size += all[i].value.numel();
  }
  const auto exact = torch::TensorOptions(placement.device).dtype(torch::kFloat32);
  masters_ = torch::zeros({size}, exact);
  gradients_ = torch::zeros({size}, exact);
  values_ = placement.dtype == torch::kFloat32 ? masters_
                                               : torch::zeros({size}, exact.dtype(placement.dtype));
  for (const Slice& slice : slices_) {
    Parameter& parameter = all[slice.index];
    const auto home = [&](const torch::Tensor& flat) {
      return flat.narrow(0, slice.offset, slice.numel).view(parameter.value.sizes());
    };
    const torch::Tensor master = home(masters_);
    master.copy_(parameter.value.detach());
    if (has_own_values()) parameter.master = master;
    parameter.value.set_data(home(values_));
    parameter.value.mutable_grad() = home(gradients_);
  }
  round_masters();
}

void ParameterArena::round_masters() {
  const torch::NoGradGuard no_grad;
  if (has_own_values()) values_.copy_(masters_);
}

}  // namespace t2r::model
