#include "launch/gpu/gpu_trace.h"

#include <torch/csrc/autograd/profiler_kineto.h>

#include <algorithm>
#include <map>

#include "base/error.h"

namespace t2r::launch {
namespace {

namespace profiler = torch::autograd::profiler;
using torch::profiler::impl::ActivityType;
using torch::profiler::impl::ProfilerConfig;
using torch::profiler::impl::ProfilerState;

// "void t2r::kernels::cuda::f<32, true>(Arguments)" -> "t2r::kernels::cuda::f<32, true>"
std::string without_signature(std::string name) {
  if (name.starts_with("void ")) name.erase(0, 5);
  int depth = 0;
  for (size_t i = 0; i < name.size(); ++i) {
    if (name[i] == '<') ++depth;
    if (name[i] == '>') --depth;
    const bool is_anonymous = name.compare(i, 11, "(anonymous ") == 0;
    if (name[i] == '(' && depth == 0 && !is_anonymous) return name.substr(0, i);
  }
  return name;
}

}  // namespace

std::vector<KernelTime> trace_gpu(const std::filesystem::path& file,
                                  const std::function<void()>& work) {
  const std::set<ActivityType> activities{ActivityType::CUDA};
  const ProfilerConfig config(ProfilerState::KINETO);
  profiler::prepareProfiler(config, activities);
  profiler::enableProfiler(config, activities);
  work();
  const std::unique_ptr<profiler::ProfilerResult> result = profiler::disableProfiler();
  std::map<std::string, KernelTime> by_name;
  for (const profiler::KinetoEvent& event : result->events()) {
    if (event.deviceType() != c10::DeviceType::CUDA) continue;
    const std::string name = without_signature(event.name());
    KernelTime& kernel = by_name[name];
    kernel.name = name;
    kernel.count += 1;
    kernel.seconds += 1e-9 * static_cast<double>(event.durationNs());
  }
  result->save(file.string());
  if (!std::filesystem::exists(file))
    throw WriteError(concat("cannot write the trace ", file.string()));
  std::vector<KernelTime> kernels;
  for (auto& [name, kernel] : by_name) kernels.push_back(std::move(kernel));
  std::sort(kernels.begin(), kernels.end(), [](const KernelTime& a, const KernelTime& b) {
    return a.seconds > b.seconds;
  });
  return kernels;
}

}  // namespace t2r::launch
