#include "launch/train/training_step.h"

#include "base/error.h"

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

dist::GradientReducerOptions reducer_options(const BackendOptions& backend) {
  return {.cap_bytes = backend.bucket_mib << 20};
}

torch::Tensor micro_batch_loss(const StepParts& parts,
                               Objective objective,
                               const torch::Tensor& inputs_BT,
                               const torch::Tensor& targets_BT) {
  const model::DecoderLM::ForwardOptions options{.dropout = parts.dropout,
                                                 .recompute = parts.recompute};
  switch (objective) {
    case Objective::kText:
      return parts.model.loss_sum(inputs_BT, targets_BT, options);
    case Objective::kDistillation:
      require(parts.distillation.teacher != nullptr,
              "a step learns from a teacher that is not there");
      return parts.model.distillation_loss_sum(inputs_BT, targets_BT, parts.distillation, options);
    case Objective::kTransfer:
      return parts.model.transfer_loss_sum(inputs_BT);
  }
  throw ContractError("objective is out of range");
}

}  // namespace t2r::launch
