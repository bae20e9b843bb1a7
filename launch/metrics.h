#pragma once

#include <cstdint>
#include <filesystem>
#include <fstream>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "launch/objective.h"
#include "launch/progress.h"

namespace t2r::launch {

/// What is known about one optimizer step.
struct StepMetrics {
  int64_t step = 0, total_steps = 0;
  double epoch = 0.0;
  double loss = 0.0;  ///< mean over all ranks' tokens
  Objective objective = Objective::kText;
  double loss_max_rank = 0.0;  ///< of the rank with the largest mean
  double gradient_norm = 0.0;  ///< before clipping, of the mean loss
  double learning_rate = 0.0;
  int64_t num_tokens = 0;  ///< of this step, all ranks
  double seconds = 0.0;
  double data_wait_seconds = 0.0;
  std::optional<double> exposed_communication_seconds = {};  ///< none: not known
  bool is_skipped = false;
  int64_t num_skipped = 0;  ///< so far
};

/// The run's record: JSON lines always, a progress bar on a terminal, plain lines elsewhere. Rank 0
/// alone makes one.
class MetricsLog {
 public:
  /// Appends to `file`. @throws WriteError
  MetricsLog(const std::filesystem::path& file, int world_size, int64_t log_every);

  void step(const StepMetrics& metrics);

  /// A named event with numbers, e.g. {"evaluation", {{"loss", 3.2}}}.
  void event(const std::string& name, const std::vector<std::pair<std::string, double>>& values);

  /// Ends the progress bar's line, if there is one.
  void finish_line() { progress_.finish(); }

 private:
  void write(const std::string& json);

  std::filesystem::path path_;
  std::ofstream file_;
  int world_size_;
  int64_t log_every_;
  ProgressLine progress_;
  // Throughput since the last line; the first two steps warm up and are left out.
  int64_t num_seen_ = 0;
  int64_t window_tokens_ = 0;
  double window_seconds_ = 0.0, window_wait_ = 0.0, window_exposed_ = 0.0;
  double timed_seconds_ = 0.0;
  int64_t timed_steps_ = 0;
};

}  // namespace t2r::launch
