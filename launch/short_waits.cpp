// Linked into t2r alone. Threads of LibTorch's OpenMP runtime (GNU's) wait for each other behind
// every operation. By default they spin for some 3 ms before they sleep: beside a busy processor
// a thread that spins takes the time of the one that it waits for, and a step of a small model
// takes ten times as long. The runtime reads how long from the environment when it is loaded, which
// is before main() and before any constructor of ours. So this program starts itself once more with
// the variable set, from the one place that runs before libraries set themselves up: that costs
// 20 ms, where doing it in main() would cost 200. Whoever sets one of the two variables decides.
// Figures: docs/results/threads.md.
//
// The same place holds back the signals that stop a run of `t2r train` until main() listens to them
// (launch/stop_signal.h): libraries take a tenth of a second to load, and far longer from a
// network.
#include <signal.h>
#include <unistd.h>

#include <climits>
#include <cstddef>
#include <initializer_list>

#if defined(__has_feature)
#if __has_feature(address_sanitizer) || __has_feature(thread_sanitizer) || \
    __has_feature(memory_sanitizer)
#define T2R_SANITIZED
#endif
#elif defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
#define T2R_SANITIZED
#endif

#ifndef T2R_SANITIZED  // their runtimes are not there yet
namespace {

char short_waits[] = "GOMP_SPINCOUNT=1000";

// Nothing of the C library but system calls may be used here: it has not been initialised.
bool begins_with(const char* text, const char* prefix) {
  while (*prefix != '\0' && *text == *prefix) ++text, ++prefix;
  return *prefix == '\0';
}

// Of a program started through the dynamic loader (ld-linux-x86-64.so.2 t2r), /proc/self/exe is
// the loader, which would take the arguments for its own.
bool is_loader(const char* program) {
  const char* name = program;
  for (; *program != '\0'; ++program) {
    if (*program == '/') name = program + 1;
  }
  return begins_with(name, "ld-") || begins_with(name, "ld.so");
}

bool is_training(char** argv) {
  return argv[0] != nullptr && argv[1] != nullptr && begins_with(argv[1], "train") &&
         argv[1][5] == '\0';
}

void hold_stop_signals() {
  sigset_t stops;
  ::sigemptyset(&stops);
  for (const int number : {SIGUSR1, SIGTERM, SIGINT, SIGHUP}) ::sigaddset(&stops, number);
  ::sigprocmask(SIG_BLOCK, &stops, nullptr);
}

void start_again_with_short_waits(int, char** argv, char** environment) {
  if (is_training(argv)) hold_stop_signals();
  constexpr size_t kMostVariables = 4096;
  static char* variables[kMostVariables + 2];
  size_t count = 0;
  for (; environment[count] != nullptr; ++count) {
    if (count == kMostVariables || begins_with(environment[count], "GOMP_SPINCOUNT=") ||
        begins_with(environment[count], "OMP_WAIT_POLICY="))
      return;
    variables[count] = environment[count];
  }
  variables[count] = short_waits;
  static char program[PATH_MAX];  // zeros behind the name
  if (::readlink("/proc/self/exe", program, sizeof(program) - 1) > 0 && !is_loader(program))
    ::execve(program, argv, variables);
  // It was not started: it goes on, with the runtime's own waits.
}

using Initializer = void (*)(int, char**, char**);
[[gnu::section(".preinit_array"), gnu::used]] const Initializer initializer =
    &start_again_with_short_waits;

}  // namespace
#endif
