#pragma once

#include "model/kernels/cpu/causal_attention_cpu.h"
#include "model/kernels/cpu/pointwise_cpu.h"

namespace t2r::model::kernels {

/// Everything that one instruction set's translation unit exports.
struct CpuKernels {
  const char* name;
  void (*causal_forward_f32)(const CausalForward<float>&, int64_t item);
  void (*causal_forward_f64)(const CausalForward<double>&, int64_t item);
  void (*causal_backward_f32)(const CausalBackward<float>&, int64_t item);
  void (*causal_backward_f64)(const CausalBackward<double>&, int64_t item);
  PointwiseKernels pointwise;
};

/// The widest set that both this build and this processor have. T2R_CPU_ISA=baseline|avx2|avx512 in
/// the environment chooses a narrower one (for tests and bug reports).
const CpuKernels& cpu_kernels();

}  // namespace t2r::model::kernels
