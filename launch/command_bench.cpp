#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <filesystem>

#include "base/error.h"
#include "launch/command.h"

namespace t2r::launch {

int run_bench_attention(const Invocation& invocation) {
  // GPU benchmarks are a program beside this one, which alone loads CUDA.
  const std::filesystem::path program = std::filesystem::read_symlink("/proc/self/exe").parent_path() / "t2r_gpu_bench";
  if (!std::filesystem::exists(program)) {
    throw ConfigError(concat("bench attention needs a build with CUDA (launch/build.sh gpu); ", program.string(), " does not exist"));
  }
  std::vector<char*> arguments{const_cast<char*>(program.c_str())};
  for (const std::string& argument : invocation.arguments) arguments.push_back(const_cast<char*>(argument.c_str()));
  arguments.push_back(nullptr);
  ::execv(program.c_str(), arguments.data());
  throw ContractError(concat("cannot run ", program.string(), ": ", std::strerror(errno)));
}

}  // namespace t2r::launch
