#include "launch/training_step.h"

namespace t2r::launch {

torch::Tensor micro_batch_loss(const StepParts& parts,
                               bool is_transfer,
                               const torch::Tensor& inputs_BT,
                               const torch::Tensor& targets_BT) {
  if (is_transfer) return parts.model.transfer_loss_sum(inputs_BT);
  const model::DecoderLM::ForwardOptions options{.dropout = parts.dropout,
                                                 .recompute = parts.recompute};
  return parts.distillation.teacher != nullptr
             ? parts.model.distillation_loss_sum(inputs_BT, targets_BT, parts.distillation, options)
             : parts.model.loss_sum(inputs_BT, targets_BT, options);
}

}  // namespace t2r::launch
