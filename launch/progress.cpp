#include "launch/progress.h"

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
  constexpr int64_t kBarWidth = 20;
  const int64_t filled = done < total ? kBarWidth * done / total : kBarWidth;
  const std::string bar = std::string(static_cast<size_t>(filled), '#') +
                          std::string(static_cast<size_t>(kBarWidth - filled), '.');
  std::fprintf(stderr, "\r\033[K[%s] %s", bar.c_str(), text.c_str());
  std::fflush(stderr);
  is_open_ = true;
  if (done >= total) finish();
}

void ProgressLine::finish() {
  if (is_open_) std::fputc('\n', stderr);
  is_open_ = false;
}

}  // namespace t2r::launch
