#include "launch/train/evaluator.h"

#include <chrono>
#include <optional>

#include "base/error.h"
#include "launch/stop_signal.h"

namespace t2r::launch {

Evaluator::Evaluator(const model::Trainable& model,
                     const data::Corpus* corpus,
                     const EvaluationPlan& plan,
                     dist::Communicator& communicator)
    : model_(model), corpus_(corpus), plan_(plan), communicator_(communicator) {}

bool Evaluator::is_due(int64_t step) const {
  if (corpus_ == nullptr) return false;
  return step == plan_.total_steps || (plan_.every > 0 && step % plan_.every == 0);
}

PerplexityResult Evaluator::score(int64_t step, ProgressLine* progress) {
  require(corpus_ != nullptr, "an evaluation without validation data");
  std::optional<PassingProgress> shown;
  if (progress != nullptr) shown.emplace(*progress);
  ScoringHooks hooks{.is_stop_requested = &stop_requested,
                     .on_progress = {},
                     .batch_option = "--micro-batch-size"};
  if (shown.has_value()) {
    hooks.on_progress = [&](int64_t done, int64_t total) {
      shown->show(done, total, concat("evaluating step ", step));
    };
  }
  const auto start = std::chrono::steady_clock::now();
  const PerplexityResult result =
      score_corpus(model_, *corpus_, plan_.protocol, communicator_, hooks);
  if (!result.is_stopped)
    seconds_ = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  return result;
}

double Evaluator::remaining_seconds(int64_t step) const {
  if (corpus_ == nullptr || step >= plan_.total_steps) return 0.0;
  int64_t count = 1;  // behind the last step
  if (plan_.every > 0) count += (plan_.total_steps - 1) / plan_.every - step / plan_.every;
  return static_cast<double>(count) * seconds_;
}

}  // namespace t2r::launch
