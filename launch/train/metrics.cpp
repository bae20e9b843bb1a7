#include "launch/train/metrics.h"

#include <fcntl.h>
#include <unistd.h>

#include <cerrno>
#include <chrono>
#include <cmath>
#include <cstdio>
#include <cstring>
#include <nlohmann/json.hpp>
#include <string_view>

#include "base/durable_file.h"
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

std::string object(const std::vector<std::pair<std::string, std::string>>& fields) {
  std::string json = "{";
  for (size_t i = 0; i < fields.size(); ++i) {
    json += concat(i == 0 ? "" : ", ", "\"", fields[i].first, "\": ", fields[i].second);
  }
  return json + "}";
}

std::string text_of(const MetricValue& value) {
  if (const auto* count = std::get_if<int64_t>(&value)) return std::to_string(*count);
  if (const auto* real = std::get_if<double>(&value)) return number(*real);
  return nlohmann::json(std::get<std::string>(value))
      .dump(-1, ' ', false, nlohmann::json::error_handler_t::replace);
}

// One write of the whole line; if it does not get there the file is as it was.
bool append(int descriptor, std::string_view line) {
  const off_t before = ::lseek(descriptor, 0, SEEK_END);
  while (!line.empty()) {
    const ssize_t written = ::write(descriptor, line.data(), line.size());
    if (written < 0 && errno == EINTR) continue;
    if (written < 0) {
      const int cause = errno;
      if (before >= 0 && ::ftruncate(descriptor, before) != 0) return false;
      errno = cause;
      return false;
    }
    line.remove_prefix(static_cast<size_t>(written));
  }
  return true;
}

int open_to_append(const std::filesystem::path& file) {
  return open_regular_file(file, O_WRONLY | O_CREAT | O_APPEND);
}

}  // namespace

MetricsLog::MetricsLog(const std::filesystem::path& file,
                       const Start& start,
                       int world_size,
                       int64_t log_every)
    : path_(file),
      step_(start.step),
      num_tokens_(start.num_tokens),
      world_size_(world_size),
      log_every_(log_every) {
  if (std::filesystem::exists(file)) clean(start);
  descriptor_ = open_to_append(file);
}

MetricsLog::~MetricsLog() {
  if (descriptor_ >= 0) ::close(descriptor_);
}

void MetricsLog::clean(const Start& start) {
  const std::string text = read_file(path_);
  std::string kept, repeated;
  int64_t num_broken = 0;
  for (size_t begin = 0; begin < text.size();) {
    const size_t end = std::min(text.find('\n', begin), text.size() - 1) + 1;
    const std::string line = text.substr(begin, end - begin);
    begin = end;
    const auto record = nlohmann::json::parse(line, nullptr, /*allow_exceptions=*/false);
    if (!record.is_object() || line.back() != '\n') {
      ++num_broken;
      continue;
    }
    const auto at = record.find("step"), event = record.find("event");
    const int64_t step = at != record.end() && at->is_number_integer() ? at->get<int64_t>() : 0;
    const bool is_evaluation =
        step == start.step && event != record.end() && *event == "evaluation";
    const bool is_repeated = step > start.step || (is_evaluation && start.is_evaluated_again);
    (is_repeated ? repeated : kept) += line;
  }
  if (num_broken > 0)
    log::warning(concat(path_.string(), ": ", num_broken, " broken line(s) taken out"));
  if (kept.size() == text.size()) return;
  try {
    if (!repeated.empty()) {
      const std::string beside = path_.string() + ".repeated";
      const int descriptor = open_to_append(beside);
      const int cause = append(descriptor, repeated) ? 0 : errno;
      ::close(descriptor);
      if (cause != 0) throw WriteError(concat(beside, ": cannot write: ", std::strerror(cause)));
      sync_path(beside);  // before they are taken out of the other
    }
    write_file_durably(path_, kept);
  } catch (const WriteError& error) {  // a disk that is full costs records, not the run
    log::warning(concat(error.what(), "; steps after ", start.step, " stand there twice"));
  }
}

void MetricsLog::write(const std::string& name,
                       const std::vector<std::pair<std::string, std::string>>& fields) {
  const double now =
      std::chrono::duration<double>(std::chrono::system_clock::now().time_since_epoch()).count();
  char time[40];
  std::snprintf(time, sizeof(time), "%.3f", now);
  std::vector<std::pair<std::string, std::string>> all{{"event", "\"" + name + "\""},
                                                       {"time", time},
                                                       {"step", std::to_string(step_)},
                                                       {"tokens", std::to_string(num_tokens_)}};
  all.insert(all.end(), fields.begin(), fields.end());
  if (append(descriptor_, object(all) + "\n")) return;
  log::warning(concat(
      path_.string(), ": cannot write metrics (", std::strerror(errno), "); training goes on"));
}

void MetricsLog::step(const StepMetrics& m) {
  step_ = m.step;
  num_tokens_ = m.total_num_tokens;
  write(m.objective->trains_maps_alone ? "transfer_step" : "step",
        {{"epoch", number(m.epoch)},
         {"objective", text_of(std::string(m.objective->name))},
         {"loss", number(m.loss)},
         {"loss_max_rank", number(m.loss_max_rank)},
         {"grad_norm", number(m.gradient_norm)},
         {"lr", number(m.learning_rate)},
         {"step_tokens", std::to_string(m.num_tokens)},
         {"seconds", number(m.seconds)},
         {"data_wait_seconds", number(m.data_wait_seconds)},
         {"exposed_communication_seconds", number(m.exposed_communication_seconds.value_or(NAN))},
         {"skipped", m.is_skipped ? "true" : "false"}});
  if (++num_seen_ > kWarmupSteps) {
    window_tokens_ += m.num_tokens;
    window_seconds_ += m.seconds;
    window_wait_ += m.data_wait_seconds;
    window_exposed_ += m.exposed_communication_seconds.value_or(0.0);
    timed_seconds_ += m.seconds;
    ++timed_steps_;
  }
  const bool is_last = m.step == m.total_steps;
  if (m.step % log_every_ == 0 || is_last || num_seen_ == 1) show(m);
}

void MetricsLog::show(const StepMetrics& m) {
  const double seconds = window_seconds_ > 0.0 ? window_seconds_ : m.seconds;
  const double rate = (window_seconds_ > 0.0 ? static_cast<double>(window_tokens_)
                                             : static_cast<double>(m.num_tokens)) /
                      seconds;
  const double step_seconds =
      timed_steps_ > 0 ? timed_seconds_ / static_cast<double>(timed_steps_) : m.seconds;
  const double left =
      step_seconds * static_cast<double>(m.total_steps - m.step) + m.remaining_evaluation_seconds;
  char perplexity[40] = "";  // of a cross-entropy alone
  if (m.objective->is_cross_entropy)
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
                m.objective->loss_name,
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
                duration_text(left).c_str());
  window_tokens_ = 0;
  window_seconds_ = window_wait_ = window_exposed_ = 0.0;
  progress_.show(m.step, m.total_steps, text);
}

void MetricsLog::event(const std::string& name,
                       const std::vector<std::pair<std::string, MetricValue>>& values) {
  std::vector<std::pair<std::string, std::string>> fields;
  for (const auto& [key, value] : values) fields.emplace_back(key, text_of(value));
  write(name, fields);
}

}  // namespace t2r::launch
