#include "launch/metrics.h"

#include <cmath>
#include <cstdio>

#include "base/error.h"
#include "base/log.h"

namespace t2r::launch {
namespace {

constexpr int64_t kWarmupSteps = 2;

// Nine digits tell any two floats apart, so that runs can be compared bitwise.
std::string number(double value) {
  if (!std::isfinite(value)) return "null";
  char text[40];
  std::snprintf(text, sizeof(text), "%.9g", value);
  return text;
}

std::string duration(double seconds) {
  char text[40];
  const auto whole = static_cast<long long>(seconds);
  if (whole >= 3600) {
    std::snprintf(text, sizeof(text), "%lldh%02lldm", whole / 3600, whole / 60 % 60);
  } else {
    std::snprintf(text, sizeof(text), "%lldm%02llds", whole / 60, whole % 60);
  }
  return text;
}

std::string object(const std::vector<std::pair<std::string, std::string>>& fields) {
  std::string json = "{";
  for (size_t i = 0; i < fields.size(); ++i) {
    json += concat(i == 0 ? "" : ", ", "\"", fields[i].first, "\": ", fields[i].second);
  }
  return json + "}";
}

const char* loss_name(Objective objective) {
  switch (objective) {
    case Objective::kText:
      return "loss";
    case Objective::kDistillation:
      return "distillation loss";
    case Objective::kTransfer:
      return "transfer loss";
  }
  return "";
}

}  // namespace

MetricsLog::MetricsLog(const std::filesystem::path& file, int world_size, int64_t log_every)
    : path_(file), file_(file, std::ios::app), world_size_(world_size), log_every_(log_every) {
  if (!file_) throw WriteError(concat(file.string(), ": cannot open for appending"));
}

void MetricsLog::write(const std::string& json) {
  file_ << json << "\n" << std::flush;
  if (!file_) {
    log::warning(concat(path_.string(), ": cannot write metrics (disk full?); training goes on"));
    file_.clear();
  }
}

void MetricsLog::step(const StepMetrics& m) {
  write(object(
      {{"event", m.objective == Objective::kTransfer ? "\"transfer_step\"" : "\"step\""},
       {"step", std::to_string(m.step)},
       {"epoch", number(m.epoch)},
       {"loss", number(m.loss)},
       {"loss_max_rank", number(m.loss_max_rank)},
       {"grad_norm", number(m.gradient_norm)},
       {"lr", number(m.learning_rate)},
       {"tokens", std::to_string(m.num_tokens)},
       {"seconds", number(m.seconds)},
       {"data_wait_seconds", number(m.data_wait_seconds)},
       {"exposed_communication_seconds", number(m.exposed_communication_seconds.value_or(NAN))},
       {"skipped", m.is_skipped ? "true" : "false"}}));
  if (++num_seen_ > kWarmupSteps) {
    window_tokens_ += m.num_tokens;
    window_seconds_ += m.seconds;
    window_wait_ += m.data_wait_seconds;
    window_exposed_ += m.exposed_communication_seconds.value_or(0.0);
    timed_seconds_ += m.seconds;
    ++timed_steps_;
  }
  const bool is_last = m.step == m.total_steps;
  if (m.step % log_every_ != 0 && !is_last && num_seen_ != 1) return;

  const double seconds = window_seconds_ > 0.0 ? window_seconds_ : m.seconds;
  const double rate = (window_seconds_ > 0.0 ? static_cast<double>(window_tokens_)
                                             : static_cast<double>(m.num_tokens)) /
                      seconds;
  const double step_seconds =
      timed_steps_ > 0 ? timed_seconds_ / static_cast<double>(timed_steps_) : m.seconds;
  char perplexity[40] = "";  // of the text's own loss alone
  if (m.objective == Objective::kText)
    std::snprintf(perplexity, sizeof(perplexity), "  ppl %.2f", std::exp(m.loss));
  char communication[16] = "-";
  if (m.exposed_communication_seconds.has_value())
    std::snprintf(
        communication, sizeof(communication), "%.1f%%", 100.0 * window_exposed_ / seconds);
  char text[400];
  std::snprintf(text,
                sizeof(text),
                "step %lld/%lld  epoch %.2f  %s %.4f (max %.4f)%s  norm %.3f  lr %.2e  "
                "%.0f tok/s (%.0f a rank)  "
                "%.0f ms  wait %.1f%%  comm %s  skipped %lld  eta %s",
                static_cast<long long>(m.step),
                static_cast<long long>(m.total_steps),
                m.epoch,
                loss_name(m.objective),
                m.loss,
                m.loss_max_rank,
                perplexity,
                m.gradient_norm,
                m.learning_rate,
                rate,
                rate / world_size_,
                1e3 * m.seconds,
                100.0 * window_wait_ / seconds,
                communication,
                static_cast<long long>(m.num_skipped),
                duration(step_seconds * static_cast<double>(m.total_steps - m.step)).c_str());
  window_tokens_ = 0;
  window_seconds_ = window_wait_ = window_exposed_ = 0.0;
  progress_.show(m.step, m.total_steps, text);
}

void MetricsLog::event(const std::string& name,
                       const std::vector<std::pair<std::string, double>>& values) {
  std::vector<std::pair<std::string, std::string>> fields{{"event", "\"" + name + "\""}};
  for (const auto& [key, value] : values) fields.emplace_back(key, number(value));
  write(object(fields));
}

}  // namespace t2r::launch
