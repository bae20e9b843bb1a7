#include "launch/train/progress.h"

#include <unistd.h>

#include <cstdio>

#include "base/log.h"

namespace t2r::launch {

ProgressLine::ProgressLine() : is_terminal_(::isatty(STDERR_FILENO) == 1) {}

ProgressLine::~ProgressLine() {
  finish();
}

void ProgressLine::show(int64_t done, int64_t total, const std::string& text) {
  if (!is_terminal_) {
    log::info(text);
    return;
  }
  log::to_file_only(text);
  draw(done, total, text);
  if (done >= total) finish();
}

void ProgressLine::draw(int64_t done, int64_t total, const std::string& text) {
  constexpr int64_t kBarWidth = 20;
  const int64_t filled = done < total ? kBarWidth * done / total : kBarWidth;
  const std::string bar = std::string(static_cast<size_t>(filled), '#') +
                          std::string(static_cast<size_t>(kBarWidth - filled), '.');
  std::fprintf(stderr, "\r\033[K[%s] %s", bar.c_str(), text.c_str());
  std::fflush(stderr);
  is_open_ = true;
}

void ProgressLine::finish() {
  if (is_open_) std::fputc('\n', stderr);
  is_open_ = false;
}

void ProgressLine::wipe() {
  if (is_open_) std::fputs("\r\033[K", stderr);
  std::fflush(stderr);
  is_open_ = false;
}

PassingProgress::PassingProgress(ProgressLine& line)
    : line_(line), start_(std::chrono::steady_clock::now()), last_(start_) {
  line_.finish();
}

PassingProgress::~PassingProgress() {
  line_.wipe();
}

void PassingProgress::show(int64_t done, int64_t total, const std::string& what) {
  constexpr double kPauseOnTerminal = 0.2, kPauseElsewhere = 30.0;
  const auto now = std::chrono::steady_clock::now();
  const auto seconds_since = [&](std::chrono::steady_clock::time_point time) {
    return std::chrono::duration<double>(now - time).count();
  };
  if (done <= 0 || total <= 0 ||
      seconds_since(last_) < (line_.is_terminal() ? kPauseOnTerminal : kPauseElsewhere)) {
    return;
  }
  last_ = now;
  const double seconds = seconds_since(start_), rate = static_cast<double>(done) / seconds;
  char text[200];
  std::snprintf(text,
                sizeof(text),
                "%s: %lld %% of %lld tokens, %.0f tok/s, eta %s",
                what.c_str(),
                static_cast<long long>(100 * done / total),
                static_cast<long long>(total),
                rate,
                duration_text(static_cast<double>(total - done) / rate).c_str());
  if (line_.is_terminal()) {
    line_.draw(done, total, text);
  } else {
    log::info(text);
  }
}

std::string duration_text(double seconds) {
  char text[40];
  const auto whole = static_cast<long long>(seconds);
  if (whole >= 3600) {
    std::snprintf(text, sizeof(text), "%lldh%02lldm", whole / 3600, whole / 60 % 60);
  } else {
    std::snprintf(text, sizeof(text), "%lldm%02llds", whole / 60, whole % 60);
  }
  return text;
}

}  // namespace t2r::launch
