#pragma once

#include <torch/types.h>

#include <array>
#include <cstdint>

#include "model/parameters.h"

namespace t2r::model {

struct AdamWOptions {
  double beta1 = 0.9;
  double beta2 = 0.95;
  double eps = 1e-8;
  double weight_decay = 0.1;  ///< on matrices only
};

/// AdamW with decoupled decay over an arena. Source: Loshchilov & Hutter 2019, as torch.optim.AdamW
/// computes it.
class AdamW {
 public:
  AdamW(const ParameterArena& arena, const AdamWOptions& options);

  struct Step {
    int64_t number = 1;  ///< 1 for the first: bias correction
    double learning_rate = 0.0;
    double map_learning_rate = 0.0;  ///< of the parameters that T2R added
    double gradient_scale = 1.0;     ///< 1 / normaliser times the clipping factor
  };

  /// What the gradients of a step come to.
  struct Norm {
    double value = 0.0;           ///< of the mean loss' gradient, before clipping
    double gradient_scale = 1.0;  ///< makes the sum's gradient the mean's, and clips it
    bool is_finite = true;        ///< norm and loss are: if not, the step has to be skipped
  };

  /// Of the arena's gradients, which are those of `loss_sum` over `num_targets`, on the CPU.
  /// @param clip_norm  largest norm that is not scaled down; 0: any
  Norm norm(double loss_sum, int64_t num_targets, double clip_norm) const;

  /// Updates the values of an arena on the CPU from its gradients. Deterministic in the number of
  /// threads. On a GPU the step does both (launch/gpu/gpu_step.cpp).
  void update(const Step& step);

  /// One tensor of what has to be kept beside the parameters to go on.
  struct State {
    const char* name;      ///< in checkpoints
    torch::Tensor values;  ///< [arena size] float32, the optimizer's own
  };
  std::array<State, 2> state() const;

  /// As before the first update.
  void reset();

  const AdamWOptions& options() const { return options_; }
  torch::Tensor first_moment() const { return first_moment_; }    ///< [arena size] float32
  torch::Tensor second_moment() const { return second_moment_; }  ///< [arena size] float32

 private:
  const ParameterArena& arena_;
  AdamWOptions options_;
  torch::Tensor first_moment_;
  torch::Tensor second_moment_;
};

/// sqrt of the sum of squares of a flat float32 tensor, summed in float64 in a fixed order.
double l2_norm(const torch::Tensor& flat);

}  // namespace t2r::model
