#include "launch/backend_options.h"
#include "launch/command.h"

namespace t2r::launch {

int run_bench_attention(const Invocation& invocation) {
  become_gpu_program("t2r_gpu_bench", invocation.arguments, "bench attention");
}

}  // namespace t2r::launch
