#pragma once

#include <cstdint>

#include "data/corpus.h"
#include "launch/train/perplexity.h"
#include "launch/train/progress.h"

namespace t2r::launch {

/// When a run validates; `every` 0: after the last step alone.
struct EvaluationPlan {
  int64_t every = 0;
  int64_t total_steps = 0;
  PerplexityProtocol protocol;
};

/// Validation during a run: when it is due, its score, and how long it takes.
class Evaluator {
 public:
  /// @param corpus  nullptr: nothing is ever due
  Evaluator(const model::Trainable& model,
            const data::Corpus* corpus,
            const EvaluationPlan& plan,
            dist::Communicator& communicator);

  bool has_data() const { return corpus_ != nullptr; }

  /// Whether one belongs behind this step; behind the last one it always does.
  bool is_due(int64_t step) const;

  /// Scores the model as it is; stop signals end it. Collective: every rank, same order.
  /// @param progress  where to show how far it is; nullptr: nowhere
  /// @throws Error  on every rank, if it fails on any
  PerplexityResult score(int64_t step, ProgressLine* progress);

  /// Seconds of the newest whole score.
  double seconds() const { return seconds_; }

  /// Seconds that the evaluations behind later steps than this will take, from the newest one.
  double remaining_seconds(int64_t step) const;

 private:
  const model::Trainable& model_;
  const data::Corpus* corpus_;
  EvaluationPlan plan_;
  dist::Communicator& communicator_;
  double seconds_ = 0.0;
};

}  // namespace t2r::launch
