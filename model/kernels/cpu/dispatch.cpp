#include "model/kernels/cpu/dispatch.h"

#include <cstdlib>
#include <string_view>

#include "base/error.h"

namespace t2r::model::kernels {

namespace baseline {
extern const CpuKernels kKernels;
}
#ifdef T2R_X86_KERNELS
namespace avx2 {
extern const CpuKernels kKernels;
}
namespace avx512 {
extern const CpuKernels kKernels;
}
#endif

namespace {

const CpuKernels& choose() {
  const char* wanted = std::getenv("T2R_CPU_ISA");
  const std::string_view limit = wanted == nullptr ? "avx512" : wanted;
  if (limit != "avx512" && limit != "avx2" && limit != "baseline") {
    throw ConfigError(concat("T2R_CPU_ISA=", limit, ": allowed are baseline, avx2, avx512"));
  }
#ifdef T2R_X86_KERNELS
  const bool has_avx512 = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512dq") &&
                          __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512bw");
  if (limit == "avx512" && has_avx512) return avx512::kKernels;
  const bool has_avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
  if (limit != "baseline" && has_avx2) return avx2::kKernels;
#endif
  return baseline::kKernels;
}

}  // namespace

const CpuKernels& cpu_kernels() {
  static const CpuKernels& chosen = choose();
  return chosen;
}

const PointwiseKernels& pointwise_kernels() {
  return cpu_kernels().pointwise;
}

template <>
void causal_forward<float>(const CausalForward<float>& args, int64_t item) {
  cpu_kernels().causal_forward_f32(args, item);
}
template <>
void causal_forward<double>(const CausalForward<double>& args, int64_t item) {
  cpu_kernels().causal_forward_f64(args, item);
}
template <>
void causal_backward<float>(const CausalBackward<float>& args, int64_t item) {
  cpu_kernels().causal_backward_f32(args, item);
}
template <>
void causal_backward<double>(const CausalBackward<double>& args, int64_t item) {
  cpu_kernels().causal_backward_f64(args, item);
}

}  // namespace t2r::model::kernels
