#pragma once

#include <memory>

#include "dist/gradient_reducer.h"
#include "launch/backend.h"
#include "launch/train/training_step.h"
#include "model/optim/adamw.h"
#include "model/parameters.h"
#include "model/trainable.h"

namespace t2r::launch {

struct TrainingRunOptions {
  model::AdamWOptions optimizer = {};
  model::LossOptions loss = {};  ///< but for the objective, which a step is told
  double clip_norm = 0.0;        ///< 0: no clipping
  int64_t bucket_mib = 25;       ///< most that one reduction of gradients holds
};

/// What training works on, put together: a model's parameters in an arena, their optimizer, the
/// reduction of their gradients over the ranks, and the step. Of `t2r train` and `t2r bench train`.
class TrainingRun {
 public:
  /// Moves the model to where the backend computes, and lets every rank have rank 0's parameters.
  /// Collective: every rank, same order.
  /// @param model  outlives the run, as `backend` and options.loss.teacher do
  /// @throws ConfigError     if the backend's kernels do not have the model's attention
  /// @throws GpuMemoryError  on every rank, if one has no memory for it
  TrainingRun(model::Trainable& model, Backend& backend, const TrainingRunOptions& options);
  TrainingRun(const TrainingRun&) = delete;
  TrainingRun& operator=(const TrainingRun&) = delete;

  /// Collective: every rank, same order.
  StepTotals run_step(const StepInputs& inputs) { return step_->run(inputs); }

  model::ParameterArena& arena() { return arena_; }
  model::AdamW& optimizer() { return optimizer_; }
  TrainingStep& step() { return *step_; }

 private:
  model::ParameterArena arena_;
  model::AdamW optimizer_;
  dist::GradientReducer reducer_;
  std::unique_ptr<TrainingStep> step_;
};

}  // namespace t2r::launch
