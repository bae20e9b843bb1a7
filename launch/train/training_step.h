#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <vector>

#include "data/batch.h"
#include "dist/communicator.h"
#include "dist/gradient_reducer.h"
#include "model/objectives/objectives.h"
#include "model/optim/adamw.h"
#include "model/trainable.h"

namespace t2r::launch {

/// What one optimizer step is told.
struct StepInputs {
  const std::vector<data::Batch>& batches;  ///< this rank's micro-batches, in order
  uint64_t dropout_seed = 0;
  const model::Objective& objective = model::kText;
  bool is_stop_requested = false;  ///< on this rank
  model::AdamW::Step update;       ///< rates; `number` is the update's, if it is not skipped
};

/// What it gives: the same bits on every rank.
struct StepTotals {
  double loss_sum = 0.0;           ///< over all ranks' targets
  int64_t num_targets = 0;         ///< that count, of all ranks
  double loss_max_rank = 0.0;      ///< mean loss of the rank with the largest
  bool is_stop_requested = false;  ///< on any rank
  double gradient_norm = 0.0;      ///< of the mean loss, before clipping
  bool is_skipped = false;         ///< loss or gradients were not finite: nothing was updated
  std::optional<double> exposed_communication_seconds = {};  ///< none: a captured step does not say
};

/// The objects that a step works on; they outlive it.
struct StepParts {
  const model::Trainable& model;
  const model::ParameterArena& arena;
  model::AdamW& optimizer;
  dist::GradientReducer& reducer;
  dist::Communicator& communicator;
  model::LossOptions loss = {};  ///< but for the objective, which a step is told
  double clip_norm = 0.0;        ///< 0: no clipping

  /// Of a micro-batch.
  model::LossTerms loss_of(const model::TensorBatch& batch,
                           const model::Objective& objective) const;
};

/// The arena's gradients, as the reducer wants to know them.
std::vector<dist::GradientSlice> gradient_slices(const model::ParameterArena& arena);

/// A batch of `layout` that lies in `memory`, flat int64 of memory_numel() on any device. Views.
model::TensorBatch tensor_batch(const data::BatchLayout& layout, const torch::Tensor& memory);

/// Forward, backward, reduction over the ranks, and AdamW: the tensor work of one optimizer step.
class TrainingStep {
 public:
  virtual ~TrainingStep() = default;

  /// Collective: every rank, same order.
  virtual StepTotals run(const StepInputs& inputs) = 0;

  struct Phase {
    const char* name;
    double seconds;
  };

  /// Times the parts of a step that run() has taken before, each alone, on inputs of one
  /// micro-batch; empty where the parts cannot be told apart. Leaves the parameters as they are (at
  /// rates of zero), the moments not. Collective: every rank, same order.
  virtual std::vector<Phase> time_phases(const StepInputs&) { return {}; }
};

/// The step on this host's processors.
std::unique_ptr<TrainingStep> make_host_step(const StepParts& parts);

}  // namespace t2r::launch
