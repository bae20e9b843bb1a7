#include "base/error.h"
#include "model/loss.h"
#include "model/objectives/objectives.h"
#include "model/trainable.h"

namespace t2r::model {
namespace {

// Per token (1 - share) times its cross-entropy and share times KL(teacher || model). The teacher
// runs without dropout, in front of the model.
LossTerms distillation_loss(const Trainable& model,
                            const TensorBatch& batch,
                            const LossOptions& options) {
  require(options.teacher != nullptr, "a step learns from a teacher that is not there");
  TeacherHead head{.weight_VE = options.teacher->output_weight(), .share = options.teacher_share};
  {
    const torch::NoGradGuard no_grad;
    head.x_NE = options.teacher->target_states(batch, {});
  }
  return {linear_distillation_sum(model.target_states(batch, options),
                                  model.output_weight(),
                                  batch.at(kTargets).flatten(),
                                  head),
          batch.num_targets()};
}

}  // namespace

constinit const Objective kDistillation{
    .name = "distillation", .loss_name = "distillation loss", .loss = &distillation_loss};

}  // namespace t2r::model
