#include "launch/train/run_records.h"

#include <cmath>

#include "base/error.h"
#include "base/log.h"
#include "dist/agreement.h"
#include "launch/train/run_folder.h"

namespace t2r::launch {

RunRecords::RunRecords(const Start& start,
                       const TrainingPosition& position,
                       dist::Communicator& communicator)
    : first_step_(position.step) {
  const std::filesystem::path log_file = start.folder / "train.log";
  dist::on_first_rank(communicator, [&] {
    log::also_to_file(log_file);
    const std::string changes = replace_config(start.folder, start.config_text);
    metrics_ = std::make_unique<MetricsLog>(
        start.folder / "metrics.jsonl",
        MetricsLog::Start{.step = position.step,
                          .num_tokens = position.num_tokens,
                          .is_evaluated_again = start.is_evaluated_again},
        communicator.size(),
        start.log_every);
    metrics_->event(start.is_resumed ? "resume" : "start",
                    {{"ranks", int64_t{communicator.size()}}});
    if (start.is_resumed && !changes.empty()) metrics_->event("config", {{"changes", changes}});
  });
  // A folder that other hosts do not see is no error: their lines are on stderr.
  if (communicator.rank() != 0 && std::filesystem::exists(log_file)) log::also_to_file(log_file);
}

void RunRecords::step(const StepMetrics& metrics) {
  last_loss_ = metrics.loss;
  if (metrics_) metrics_->step(metrics);
}

void RunRecords::evaluation(const TrainingPosition& position,
                            const PerplexityResult& result,
                            double seconds,
                            bool is_best) {
  if (!metrics_) return;
  const double loss = result.loss();
  metrics_->finish_line();
  metrics_->event("evaluation",
                  {{"valid_loss", loss},
                   {"valid_perplexity", std::exp(loss)},
                   {"valid_tokens", result.num_tokens},
                   {"seconds", seconds}});
  log::info(concat("step ",
                   position.step,
                   ": validation loss ",
                   loss,
                   ", perplexity ",
                   std::exp(loss),
                   " per token (",
                   result.num_tokens,
                   " tokens in ",
                   duration_text(seconds),
                   ")",
                   is_best               ? ", the best so far"
                   : std::isfinite(loss) ? ""
                                         : ": not finite, so never the best"));
}

void RunRecords::checkpoint(double seconds) {
  if (metrics_) metrics_->event("checkpoint", {{"seconds", seconds}});
}

void RunRecords::end(const TrainingPosition& position,
                     const std::filesystem::path& model,
                     bool is_complete) {
  if (!metrics_) return;
  const double seconds =
      std::chrono::duration<double>(std::chrono::steady_clock::now() - start_).count();
  const int64_t num_steps = position.step - first_step_;
  std::vector<std::pair<std::string, MetricValue>> values{{"seconds", seconds}};
  std::string text = concat(is_complete ? "done: " : "stopped by a signal, saved: ",
                            position.step,
                            " steps, ",
                            position.num_tokens,
                            " tokens");
  if (num_steps != position.step) text += concat("; ", num_steps, " of the steps");
  text += concat(" in ", duration_text(seconds));
  if (num_steps > 0) text += concat("; last loss ", last_loss_);
  if (position.best.has_value()) {
    values.insert(values.end(),
                  {{"best_valid_loss", position.best->loss}, {"best_step", position.best->step}});
    text += concat("; best validation loss ",
                   position.best->loss,
                   " (perplexity ",
                   std::exp(position.best->loss),
                   ") at step ",
                   position.best->step);
  }
  metrics_->event(is_complete ? "end" : "stop", values);
  log::info(concat(text, "; ", model.string(), is_complete ? "" : "; go on with --resume"));
}

}  // namespace t2r::launch
