#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

#include "model/kernels/cuda/decode/step_limits.h"

/// A projection of the few rows that a step of generation has, with what stands before and behind
/// it. No LibTorch.
namespace t2r::kernels::cuda {

/// What happens to y = norm(x) W^T + bias.
enum class StepKind {
  kPlain,   ///< y
  kGelu,    ///< x / 2 (1 + tanh(sqrt(2 / pi) (x + 0.044715 x^3))) of y
  kSwiglu,  ///< silu(first half of y's columns) times the second half
  kRotate,  ///< the first `rotated` columns, heads of 2 half, turned by the angles of position
            ///< *position
};

/// out = f(norm(x) W^T + bias) + residual, bfloat16 with float32 sums; the norm is rounded to
/// bfloat16 before the product.
struct StepLinear {
  int rows = 0;     ///< 1 to kMaxStepRows
  int inputs = 0;   ///< a multiple of 8, at most kMaxStepInputs; rows times inputs is at most
                    ///< kMaxStepSize; step_linear_bytes() fit the device
  int outputs = 0;  ///< columns of out: rows of the weight, or half as many with kSwiglu
  StepKind kind = StepKind::kPlain;
  const void* x = nullptr;            ///< [rows, inputs]
  const void* weight = nullptr;       ///< [outputs, inputs]; [2 outputs, inputs] with kSwiglu
  const void* bias = nullptr;         ///< one for each row of the weight, or null
  const void* norm_weight = nullptr;  ///< [inputs], or null: no norm
  const void* norm_bias = nullptr;    ///< [inputs]: LayerNorm; null: RMSNorm
  float eps = 0.0F;
  const void* residual = nullptr;  ///< [rows, outputs] or null
  const float* cosine = nullptr;   ///< [table_rows, half], with kRotate
  const float* sine = nullptr;
  const int64_t* position = nullptr;  ///< one number on the device; outside the tables: NaN
  int64_t table_rows = 0;
  int half = 0, rotated = 0;
  void* out = nullptr;     ///< [rows, outputs], bfloat16, or float32 with float_out
  bool float_out = false;  ///< kPlain only
  bool overlaps = false;   ///< the launch may overlap the end of the kernel before it (Hopper)
};

/// Shared memory, in bytes, of a block of threads; `norms` vectors stand in front (LayerNorm 2),
/// `pairs` are kSwiglu and kRotate.
int step_linear_bytes(int rows, int inputs, int norms, bool pairs);

/// Launches on `stream`; one kernel, no allocation, no synchronisation. Pointers are 16-byte
/// aligned. Deterministic.
cudaError_t step_linear(const StepLinear& arguments, int multiprocessors, cudaStream_t stream);

}  // namespace t2r::kernels::cuda
