#pragma once

#include <string>
#include <vector>

namespace t2r::launch {

/// What main hands to a sub-command: the arguments behind its name, and main's own, which MPI wants
/// to see.
struct Invocation {
  std::vector<std::string> arguments;
  int* argc = nullptr;
  char*** argv = nullptr;
};

/// Each runs one sub-command and returns the process's exit code; failures are exceptions.
int run_prepare_vocab(const Invocation& invocation);
int run_prepare_lm(const Invocation& invocation);
int run_convert(const Invocation& invocation);
int run_verify(const Invocation& invocation);
int run_train(const Invocation& invocation);
int run_evaluate(const Invocation& invocation);
int run_generate(const Invocation& invocation);
int run_bench_attention(const Invocation& invocation);
int run_bench_generate(const Invocation& invocation);
int run_bench_train(const Invocation& invocation);

}  // namespace t2r::launch
