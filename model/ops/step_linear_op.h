#pragma once

#include <ATen/core/Tensor.h>

namespace t2r::ops {

using at::Tensor;

/// A projection in a step of generation; undefined tensors are left out. Legend: N rows (1 to
/// most_step_rows()), I inputs, O outputs.
struct StepLinearInputs {
  Tensor x_NI;       ///< bfloat16, as everything but the tables and the position
  Tensor weight_OI;  ///< [O, I]; with swiglu [2 O, I]: gate, then up
  Tensor bias = {};
  Tensor norm_weight = {};  ///< x is normalised first: LayerNorm with norm_bias, else RMSNorm
  Tensor norm_bias = {};
  double eps = 0.0;
  Tensor residual_NO = {};  ///< added to the result
  enum class Activation { kNone, kGelu, kSwiglu } activation = Activation::kNone;
  Tensor cosine_Ph = {};   ///< with sine and position: the first `rotated` columns are heads of 2 h
                           ///< columns, turned (RoPE)
  Tensor sine_Ph = {};     ///< float32, P positions
  Tensor position_1 = {};  ///< int64, on the device, 0 to P - 1; another one gives NaN
  int64_t rotated = 0;
  bool float_output = false;  ///< float32 instead of bfloat16; not with an activation or RoPE
};

/// f(norm(x) W^T + b) + residual in one kernel, every weight read once, sums in float32 and the
/// result rounded once (the normalised x is rounded to bfloat16). The kernel starts to read weights
/// while the kernel before it ends, so weights, biases and norms must be older than that. Runs on
/// the current stream, can be captured in a CUDA graph. Deterministic. Not differentiable.
/// Registered as torch.ops.t2r.step_linear.
/// @return  [N, O]
/// @throws c10::Error  naming argument, value and what is allowed, if anything does not fit
Tensor step_linear(const StepLinearInputs& inputs);

/// How many rows of `inputs` columns step_linear takes on the current device, whose shared memory
/// has to hold them, with `norms` vectors (RMSNorm 1, LayerNorm 2), and `pairs` for swiglu or RoPE:
/// at most 16, and at most 49,152 / inputs; 0 unless inputs is a multiple of 8 up to 16,384.
/// Registered as torch.ops.t2r.most_step_rows.
int64_t most_step_rows(int64_t inputs, int64_t norms, bool pairs);

}  // namespace t2r::ops
