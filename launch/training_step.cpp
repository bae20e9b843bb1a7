#include "launch/training_step.h"

#include "base/error.h"

namespace t2r::launch {

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
