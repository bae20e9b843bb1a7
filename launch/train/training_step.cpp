#include "launch/train/training_step.h"

#include <utility>

namespace t2r::launch {

std::vector<dist::GradientSlice> gradient_slices(const model::ParameterArena& arena) {
  std::vector<dist::GradientSlice> slices;
  for (const model::ParameterArena::Slice& slice : arena.slices()) {
    const model::Parameter& parameter = arena.parameters().all()[slice.index];
    slices.push_back({.name = parameter.pieces.front().name,
                      .parameter = parameter.value,
                      .offset = slice.offset,
                      .numel = slice.numel,
                      .group = parameter.group});
  }
  return slices;
}

model::LossTerms StepParts::loss_of(const model::TensorBatch& batch,
                                    const model::Objective& objective) const {
  model::LossOptions options = loss;
  options.objective = &objective;
  return model.loss(batch, options);
}

model::TensorBatch tensor_batch(const data::BatchLayout& layout, const torch::Tensor& memory) {
  std::vector<std::pair<std::string, torch::Tensor>> fields;
  int64_t begin = 0;
  for (const data::BatchField& field : layout.fields) {
    fields.emplace_back(field.name, memory.narrow(0, begin, field.numel()).view(field.shape));
    begin += field.numel();
  }
  return {std::move(fields), memory[begin], layout.is_padded};
}

}  // namespace t2r::launch
