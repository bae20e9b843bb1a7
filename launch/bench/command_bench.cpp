#include "launch/command.h"
#include "launch/options/backend_options.h"

namespace t2r::launch {

int run_bench_attention(const Invocation& invocation) {
  become_gpu_program("t2r_gpu_bench", invocation.arguments, "bench attention");
}

}  // namespace t2r::launch
