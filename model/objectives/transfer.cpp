#include "model/objectives/objectives.h"
#include "model/trainable.h"

namespace t2r::model {
namespace {

// Source: Zhang et al. 2024 (LoLCATs), section 3.2.
LossTerms transfer_loss(const Trainable& model, const TensorBatch& batch, const LossOptions&) {
  return {model.transfer_error_sum(batch), batch.num_targets()};
}

}  // namespace

constinit const Objective kTransfer{.name = "transfer",
                                    .loss_name = "transfer loss",
                                    .trains_maps_alone = true,
                                    .loss = &transfer_loss};

}  // namespace t2r::model
