#include "model/loss.h"
#include "model/objectives/objectives.h"
#include "model/trainable.h"

namespace t2r::model {
namespace {

LossTerms text_loss(const Trainable& model, const TensorBatch& batch, const LossOptions& options) {
  return {
      linear_cross_entropy_sum(
          model.target_states(batch, options), model.output_weight(), batch.at(kTargets).flatten()),
      batch.num_targets()};
}

}  // namespace

constinit const Objective kText{
    .name = "text", .loss_name = "loss", .is_cross_entropy = true, .loss = &text_loss};

}  // namespace t2r::model
