#include "model/trainable.h"

#include <algorithm>

#include "base/error.h"
#include "model/loss.h"
#include "model/objectives/objectives.h"

namespace t2r::model {

using torch::Tensor;

TensorBatch::TensorBatch(std::vector<std::pair<std::string, Tensor>> fields,
                         Tensor num_targets,
                         bool is_padded)
    : fields_(std::move(fields)), num_targets_(std::move(num_targets)), is_padded_(is_padded) {}

TensorBatch::TensorBatch(Tensor inputs_BT, Tensor targets_BT)
    : TensorBatch({{kInputs, std::move(inputs_BT)}, {kTargets, targets_BT}},
                  targets_BT.ge(0).sum(),
                  /*is_padded=*/true) {}

const Tensor& TensorBatch::at(std::string_view name) const {
  const auto found =
      std::ranges::find_if(fields_, [&](const auto& field) { return field.first == name; });
  require(found != fields_.end(), concat("a batch has no field \"", name, "\""));
  return found->second;
}

LossTerms Trainable::loss(const TensorBatch& batch, const LossOptions& options) const {
  require(options.objective != nullptr, "a loss without an objective");
  return options.objective->loss(*this, batch, options);
}

Tensor Trainable::target_losses(const TensorBatch& batch) const {
  const torch::NoGradGuard no_grad;
  const Tensor& targets = batch.at(kTargets);
  return linear_cross_entropy_values(target_states(batch, {}), output_weight(), targets.flatten())
      .view(targets.sizes());
}

}  // namespace t2r::model
