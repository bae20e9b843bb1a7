#include "launch/stop_signal.h"

#include <signal.h>
#include <time.h>
#include <unistd.h>

#include <array>
#include <atomic>
#include <cerrno>
#include <cstdint>
#include <string_view>

#include "base/error.h"
#include "dist/launcher.h"

namespace t2r::launch {
namespace {

constexpr std::array<int, 4> kStopSignals{SIGUSR1, SIGTERM, SIGINT, SIGHUP};

bool listens = false;
std::atomic<bool> is_requested{false}, says_stopping{false}, is_training{false};
static_assert(std::atomic<bool>::is_always_lock_free, "set from a signal handler");

// Who signals mpirun and its ranks together (pkill, systemctl stop) signals the ranks twice, since
// mpirun passes on what it gets. Nobody repeats by hand what came so shortly before.
constexpr int64_t kOneSignalMs = 500;

// When a signal came first, in ms; by its number.
std::array<std::atomic<int64_t>, NSIG> first_ms{};
static_assert(std::atomic<int64_t>::is_always_lock_free, "set from a signal handler");

int64_t now_ms() {
  timespec now{};
  ::clock_gettime(CLOCK_MONOTONIC, &now);
  return int64_t{now.tv_sec} * 1000 + now.tv_nsec / 1'000'000;
}

// Whether it comes once more, and not as an echo of the first.
bool is_repeated(int number) {
  int64_t first = 0;
  const int64_t now = now_ms();
  return !first_ms[number].compare_exchange_strong(first, now) && now - first > kOneSignalMs;
}

// write() alone is allowed here: no allocation, no lock, no stdio.
void say_stopping(int number) {
  std::string_view name = number == SIGUSR1   ? "SIGUSR1"
                          : number == SIGTERM ? "SIGTERM"
                          : number == SIGINT  ? "SIGINT"
                                              : "SIGHUP";
  const int error = errno;
  for (const std::string_view part :
       {std::string_view(::isatty(STDERR_FILENO) == 1 ? "\n" : ""),
        std::string_view("t2r: "),
        name,
        std::string_view(is_training.load()
                             ? ": stopping; the step or batch in hand is ended, then all is saved\n"
                             : ": stopping before the first step\n")}) {
    if (::write(STDERR_FILENO, part.data(), part.size()) < 0) break;
  }
  errno = error;
}

void on_signal(int number) {
  if (number != SIGHUP && is_repeated(number)) {
    ::signal(number, SIG_DFL);
    ::raise(number);  // ends the process when this handler returns
    return;
  }
  if (!is_requested.exchange(true) && says_stopping.load()) say_stopping(number);
}

sigset_t stop_signals() {
  sigset_t signals;
  sigemptyset(&signals);
  for (const int number : kStopSignals) sigaddset(&signals, number);
  return signals;
}

bool is_ignored(int number) {
  struct sigaction action {};
  return sigaction(number, nullptr, &action) == 0 && action.sa_handler == SIG_IGN;
}

void listen(int number) {
  struct sigaction action {};
  action.sa_handler = on_signal;
  action.sa_flags = SA_RESTART;
  sigaction(number, &action, nullptr);
}

}  // namespace

void ignore_file_size_signal() {
  ::signal(SIGXFSZ, SIG_IGN);
}

void install_stop_signals(bool says) {
  says_stopping.store(says);
  for (const int number : {SIGUSR1, SIGTERM, SIGINT}) listen(number);
  if (!is_ignored(SIGHUP)) listen(SIGHUP);
  ::signal(SIGPIPE, SIG_IGN);
  listens = true;
  const sigset_t held = stop_signals();
  pthread_sigmask(SIG_UNBLOCK, &held, nullptr);
}

void note_training_begins(bool says) {
  says_stopping.store(says);
  is_training.store(true);
}

bool stop_requested() {
  return is_requested.load();
}

void end_if_stop_requested() {
  if (!stop_requested()) return;
  throw Error(ExitCode::kSavedRequeue,
              "stopped by a signal before the first step: nothing was trained, and what was saved "
              "before is as it was; start it again");
}

void hold_stops_for_next_program() {
  if (!listens) return;
  const sigset_t stops = stop_signals();
  pthread_sigmask(SIG_BLOCK, &stops, nullptr);
  end_if_stop_requested();
}

std::string how_to_stop(
    const std::function<std::optional<std::string>(const std::string&)>& environment) {
  const bool is_slurm_step = environment("PMIX_NAMESPACE").value_or("").starts_with("slurm.") ||
                             (environment("SLURM_STEP_ID").has_value() &&
                              !environment("OMPI_COMM_WORLD_SIZE").has_value());
  if (is_slurm_step) {
    return concat("scancel --signal=USR1 ",
                  environment("SLURM_JOB_ID").value_or("JOB"),
                  ".",
                  environment("SLURM_STEP_ID").value_or("STEP"),
                  " stops and saves (exit code 75), and so does SIGTERM within KillWait");
  }
  if (environment("OMPI_COMM_WORLD_SIZE").has_value()) {
    return "SIGUSR1 to mpirun stops and saves (exit code 75); after Ctrl-C or SIGTERM mpirun gives "
           "one second only";
  }
  return concat(
      "Ctrl-C, or SIGTERM or SIGUSR1 to process ", ::getpid(), ", stops and saves (exit code 75)");
}

std::string how_to_stop() {
  return how_to_stop(dist::environment_variable);
}

}  // namespace t2r::launch
