#include "launch/options/backend_options.h"

#include <unistd.h>

#include <cerrno>
#include <cstdlib>
#include <cstring>
#include <filesystem>

#include "base/error.h"
#include "base/log.h"
#include "base/text.h"
#include "launch/stop_signal.h"

namespace t2r::launch {
namespace {

namespace fs = std::filesystem;

constexpr const char* kGpuProgram = "t2r_gpu";

fs::path beside_this_program(const std::string& name) {
  return fs::read_symlink("/proc/self/exe").parent_path() / name;
}

// Device files, not the driver: asking the driver would load CUDA into a process that may not need
// it.
bool has_gpu() {
  const char* const visible = std::getenv("CUDA_VISIBLE_DEVICES");
  if (visible != nullptr && (*visible == '\0' || *visible == '-'))
    return false;  // hidden from CUDA
  std::error_code ignored;
  for (const fs::directory_entry& entry : fs::directory_iterator("/dev", ignored)) {
    const std::string name = entry.path().filename().string();
    if (name.size() > 6 && name.starts_with("nvidia") &&
        name.find_first_not_of("0123456789", 6) == std::string::npos)
      return true;
  }
  return false;
}

}  // namespace

void BackendOptions::bind(OptionSet& options, bool trains) {
  options.add("device", device, "auto: a GPU if there is one");
  options
      .add("precision",
           precision,
           "of values and activations; auto: bf16 on a GPU, float32 elsewhere")
      .said_on_resume();
  options
      .add("threads",
           threads,
           "per rank; 0: its share of the processors, or fewer where a step is too small for them")
      .range(0, kMostThreads);
  if (!trains) return;
  options.add("deterministic",
              deterministic,
              "on a GPU: bitwise the same run again, with slower softmax attention");
  bind_cuda_graph(options);
  options.add("recompute",
              recompute,
              "what the backward computes again instead of keeping it: less memory, more time");
  options
      .add("bucket-mib",
           bucket_mib,
           "MiB of gradients that ranks sum at once: smaller ones begin earlier in backward, "
           "larger ones disturb it less")
      .range(1, 1 << 20);
}

void BackendOptions::bind_cuda_graph(OptionSet& options) {
  options.add("cuda-graph", cuda_graph, "on a GPU: capture a step once and replay it");
}

void BackendOptions::resolve(const Invocation& invocation) {
  const bool is_gpu_program = has_gpu_backend();
  if (device == Device::kAuto) {
    const bool can_use_gpu = is_gpu_program || fs::exists(beside_this_program(kGpuProgram));
    device = can_use_gpu && has_gpu() ? Device::kCuda : Device::kCpu;
    if (!can_use_gpu && has_gpu()) {
      log::warning_of_first_rank(
          "this host has a GPU, but this is a build without CUDA: the CPU computes "
          "(launch/build.sh gpu; --device cpu says that it shall)");
    }
  }
  if (precision == Precision::kAuto)
    precision = device == Device::kCuda ? Precision::kBf16 : Precision::kFloat32;
  if (device == Device::kCpu && precision == Precision::kBf16)
    throw ConfigError(not_allowed("precision", name_of(precision), "float32", "on a CPU"));
  if (device == Device::kCuda && !is_gpu_program) {
    become_gpu_program(
        kGpuProgram, {*invocation.argv + 1, *invocation.argv + *invocation.argc}, "--device cuda");
  }
}

void become_gpu_program(const std::string& program,
                        const std::vector<std::string>& arguments,
                        const std::string& what) {
  const fs::path path = beside_this_program(program);
  if (!fs::exists(path)) {
    throw ConfigError(concat(what,
                             " needs a build with CUDA (launch/build.sh gpu); ",
                             path.string(),
                             " does not exist"));
  }
  std::vector<char*> argv{const_cast<char*>(path.c_str())};
  for (const std::string& argument : arguments) argv.push_back(const_cast<char*>(argument.c_str()));
  argv.push_back(nullptr);
  hold_stops_for_next_program();
  ::execv(path.c_str(), argv.data());
  throw ContractError(concat("cannot run ", path.string(), ": ", std::strerror(errno)));
}

}  // namespace t2r::launch
