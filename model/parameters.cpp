#include "model/parameters.h"

#include <numeric>
#include <utility>

#include "base/error.h"

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
  parameter.value = torch::empty(row_shape, torch::kFloat32).requires_grad_(true);
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

ParameterArena::ParameterArena(ParameterSet& parameters) : parameters_(parameters) {
  std::vector<Parameter>& all = parameters.all();
  int64_t size = 0;
  for (size_t i = all.size(); i-- > 0;) {
    slices_.push_back({i, size, all[i].value.numel()});
    size += all[i].value.numel();
  }
  values_ = torch::zeros({size}, torch::kFloat32);
  gradients_ = torch::zeros({size}, torch::kFloat32);
  for (const Slice& slice : slices_) {
    torch::Tensor& value = all[slice.index].value;
    const torch::Tensor home = values_.narrow(0, slice.offset, slice.numel).view(value.sizes());
    home.copy_(value.detach());
    value.set_data(home);
    value.mutable_grad() = gradients_.narrow(0, slice.offset, slice.numel).view(value.sizes());
  }
}

}  // namespace t2r::model
