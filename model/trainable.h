#pragma once

#include <torch/types.h>

#include <cstdint>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "base/batch_fields.h"
#include "model/config.h"
#include "model/parameters.h"

namespace t2r::model {

/// A micro-batch where the model is: the loader's fields by name, int64.
class TensorBatch {
 public:
  /// @param num_targets  those of kTargets that are not below 0, int64 scalar
  /// @param is_padded    false: all are, and nothing has to be masked
  TensorBatch(std::vector<std::pair<std::string, torch::Tensor>> fields,
              torch::Tensor num_targets,
              bool is_padded);

  /// Of a language model; counts the targets.
  TensorBatch(torch::Tensor inputs_BT, torch::Tensor targets_BT);

  /// @throws ContractError  if the batch has no such field
  const torch::Tensor& at(std::string_view name) const;

  const torch::Tensor& num_targets() const { return num_targets_; }
  bool is_padded() const { return is_padded_; }

 private:
  std::vector<std::pair<std::string, torch::Tensor>> fields_;
  torch::Tensor num_targets_;
  bool is_padded_;
};

class Trainable;
struct Objective;

/// What a micro-batch adds to the loss that a step minimises.
struct LossTerms {
  torch::Tensor sum;      ///< float64 scalar, differentiable: a sum over targets, never a mean
  torch::Tensor targets;  ///< int64 scalar: over how many, on the batch's device
};

/// How a loss is computed; a run's, but for the objective, which its stages choose.
struct LossOptions {
  const Objective* objective = nullptr;
  double dropout = 0.0;  ///< on embeddings and residual branches; torch's default generator
  Recompute recompute = Recompute::kNothing;
  const Trainable* teacher = nullptr;  ///< of kDistillation; gets no gradient
  double teacher_share = 1.0;          ///< of the loss, 0 to 1
};

/// A model as training sees it: what an objective can be made of, and its parameters.
class Trainable {
 public:
  virtual ~Trainable() = default;

  /// The loss of options.objective. @throws ContractError  without an objective
  LossTerms loss(const TensorBatch& batch, const LossOptions& options) const;

  /// Cross-entropy of every target in nats, float32 in kTargets' shape, without gradients; 0 where
  /// one does not count.
  torch::Tensor target_losses(const TensorBatch& batch) const;

  /// States of the last layer, one row a target [N, D]; of `options` dropout and recompute.
  /// @throws DataError    if a token is outside the vocabulary (checked on the CPU only: a GPU
  ///                      would have to be waited for; callers check what they upload)
  /// @throws ConfigError  if positions run past a learned position table
  virtual torch::Tensor target_states(const TensorBatch& batch,
                                      const LossOptions& options) const = 0;

  /// What turns states into logits, [V, D].
  virtual const torch::Tensor& output_weight() const = 0;

  /// How far linear attention is from softmax attention on what it was given, with softmax
  /// attention carrying the hidden states: mean square per head element, summed over layers and
  /// counting targets, float64 scalar; gradients reach the feature maps alone.
  /// @throws ConfigError  if no layer has a feature map with parameters
  virtual torch::Tensor transfer_error_sum(const TensorBatch& batch) const = 0;

  virtual const DecoderConfig& config() const = 0;

  /// Positions that the model has: rows of a learned table, or any number.
  virtual int64_t num_positions() const = 0;

  /// Where the parameters are, and so where a batch has to be.
  virtual torch::Device device() const = 0;

  virtual ParameterSet& parameters() = 0;
  virtual const ParameterSet& parameters() const = 0;
};

}  // namespace t2r::model
