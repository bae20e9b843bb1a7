#include "launch/stop_signal.h"

#include <signal.h>

#include <atomic>

namespace t2r::launch {
namespace {

std::atomic<bool> is_requested{false};
static_assert(std::atomic<bool>::is_always_lock_free, "set from a signal handler");

void on_signal(int) {
  is_requested.store(true);
}

}  // namespace

void install_stop_signals() {
  struct sigaction action {};
  action.sa_handler = on_signal;
  action.sa_flags =
      SA_RESTART | static_cast<int>(SA_RESETHAND);  // the second signal finds the default action
  for (const int number : {SIGUSR1, SIGTERM, SIGINT}) sigaction(number, &action, nullptr);
}

bool stop_requested() {
  return is_requested.load();
}

}  // namespace t2r::launch
