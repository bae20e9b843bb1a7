#pragma once

#include <chrono>
#include <filesystem>
#include <memory>
#include <string>

#include "dist/communicator.h"
#include "launch/checkpoints/checkpoint.h"
#include "launch/train/metrics.h"
#include "launch/train/perplexity.h"

namespace t2r::launch {

/// What a run leaves for people beside its checkpoints: metrics.jsonl, train.log (what goes to
/// stderr), config.toml (the newest start's options), and what it says. Rank 0 writes; on the
/// others all but the constructor does nothing, and warnings go to the same train.log.
class RunRecords {
 public:
  struct Start {
    std::filesystem::path folder;
    std::string config_text;
    bool is_resumed = false;
    bool is_evaluated_again = false;  ///< at the step that it stands at
    int64_t log_every = 10;
  };

  /// Opens the records of a run that stands at `position`: call it when nothing can refuse the run
  /// any more. Collective: every rank, same order.
  /// @throws WriteError  on every rank
  RunRecords(const Start& start,
             const TrainingPosition& position,
             dist::Communicator& communicator);

  /// nullptr on other ranks.
  MetricsLog* metrics() { return metrics_.get(); }
  ProgressLine* progress() { return metrics_ ? &metrics_->progress() : nullptr; }

  void step(const StepMetrics& metrics);
  void evaluation(const TrainingPosition& position,
                  const PerplexityResult& result,
                  double seconds,
                  bool is_best);
  void checkpoint(double seconds);

  /// The last line of a run that is complete, or was stopped by a signal.
  /// @param model  folder of what it made
  void end(const TrainingPosition& position, const std::filesystem::path& model, bool is_complete);

 private:
  std::unique_ptr<MetricsLog> metrics_;
  int64_t first_step_;
  double last_loss_ = 0.0;  ///< meaningful behind first_step_
  std::chrono::steady_clock::time_point start_ = std::chrono::steady_clock::now();
};

}  // namespace t2r::launch
