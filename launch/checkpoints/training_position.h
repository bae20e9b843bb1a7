#pragma once

#include <cstdint>
#include <optional>

namespace t2r::launch {

/// What the validation data gave behind a step.
struct Evaluation {
  int64_t step = 0;
  double loss = 0.0;  ///< nats per token; may be not finite

  bool is_finite() const;
  bool operator==(const Evaluation&) const = default;
};

/// Where a run stands; with the parameters and moments, all that a resumed run needs.
struct TrainingPosition {
  int64_t step = 0;                          ///< finished optimizer steps, skipped ones included
  int64_t num_updates = 0;                   ///< AdamW's step number: skipped steps do not count
  int64_t sample_cursor = 0;                 ///< global index of the next sample
  int64_t num_tokens = 0;                    ///< target tokens seen
  std::optional<Evaluation> best = {};       ///< of the checkpoints, the one with the least loss
  std::optional<Evaluation> evaluated = {};  ///< the newest evaluation

  /// The position as a checkpoint of this step has it: the newest evaluation is the best if it was
  /// of this step, is finite, and no checkpoint has a smaller loss.
  TrainingPosition as_saved() const;

  /// The step that the link `best` names; none where the one checkpoint there could be has a loss
  /// that is not finite. Without any evaluation of a checkpoint, the newest is the best.
  std::optional<int64_t> best_step() const;

  bool operator==(const TrainingPosition&) const = default;
};

}  // namespace t2r::launch
