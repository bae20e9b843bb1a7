#pragma once

#include <cstdint>
#include <filesystem>
#include <optional>
#include <string>
#include <utility>
#include <variant>
#include <vector>

#include "launch/train/progress.h"
#include "model/objectives/objectives.h"

namespace t2r::launch {

/// What is known about one optimizer step.
struct StepMetrics {
  int64_t step = 0, total_steps = 0;
  double epoch = 0.0;
  double loss = 0.0;  ///< mean over all ranks' tokens
  const model::Objective* objective = &model::kText;
  double loss_max_rank = 0.0;  ///< of the rank with the largest mean
  double gradient_norm = 0.0;  ///< before clipping, of the mean loss
  double learning_rate = 0.0;
  int64_t num_tokens = 0;        ///< of this step, all ranks
  int64_t total_num_tokens = 0;  ///< of the run so far, this step's included
  double seconds = 0.0;
  double data_wait_seconds = 0.0;
  std::optional<double> exposed_communication_seconds = {};  ///< none: not known
  bool is_skipped = false;
  int64_t num_skipped = 0;                    ///< so far
  double remaining_evaluation_seconds = 0.0;  ///< of the evaluations that are still to come
};

using MetricValue = std::variant<int64_t, double, std::string>;

/// The run's record, metrics.jsonl: one JSON object a line, each with its event, Unix time, step
/// and the tokens trained on so far; beside it a progress bar on a terminal, plain lines elsewhere.
/// Rank 0 alone makes one.
class MetricsLog {
 public:
  /// Where a run stands when it opens its record.
  struct Start {
    int64_t step = 0, num_tokens = 0;
    bool is_evaluated_again = false;  ///< at this step
  };

  /// Opens `file` for a run that stands at `start`. Records of later steps, which will be taken
  /// again, and lines that are not whole (a kill, a full disk) are taken out first, so that a
  /// reader sees each step once; the former go to `file` + ".repeated".
  /// @throws WriteError
  MetricsLog(const std::filesystem::path& file,
             const Start& start,
             int world_size,
             int64_t log_every);
  ~MetricsLog();
  MetricsLog(const MetricsLog&) = delete;
  MetricsLog& operator=(const MetricsLog&) = delete;

  void step(const StepMetrics& metrics);

  /// A named event at the newest step, e.g. {"evaluation", {{"valid_loss", 3.2}}}. A key means the
  /// same in all events.
  void event(const std::string& name,
             const std::vector<std::pair<std::string, MetricValue>>& values = {});

  /// Where evaluations show how far they are.
  ProgressLine& progress() { return progress_; }

  /// Ends the progress bar's line, if there is one.
  void finish_line() { progress_.finish(); }

 private:
  void clean(const Start& start);
  void write(const std::string& name,
             const std::vector<std::pair<std::string, std::string>>& fields);
  void show(const StepMetrics& metrics);

  std::filesystem::path path_;
  int descriptor_ = -1;
  int64_t step_, num_tokens_;
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
