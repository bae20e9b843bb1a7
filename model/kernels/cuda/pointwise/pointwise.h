#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

/// Element by element, in float32 arithmetic; tensors are contiguous. No LibTorch.
namespace t2r::kernels::cuda {

/// y = silu(gate) up, [rows, width], from gate_up [rows, 2 width]. With grad_y: grad_gate_up
/// instead of y.
struct Swiglu {
  int64_t rows = 0;
  int64_t width = 0;
  bool is_bf16 = false;
  const void* gate_up = nullptr;
  void* y = nullptr;
  const void* grad_y = nullptr;
  void* grad_gate_up = nullptr;
};

/// Turns the pair of columns (j, j + half) of the first heads by the angle of (token, j); the other
/// heads are copied.
struct Rotate {
  int64_t batch = 0, length = 0, heads = 0, half = 0;
  int64_t rotated_heads = 0;
  bool is_bf16 = false;
  bool backwards = false;         ///< by the negative angle
  const float* cosine = nullptr;  ///< [length, half]
  const float* sine = nullptr;
  const void* x = nullptr;  ///< [batch, length, heads, 2 half]
  void* y = nullptr;
};

/// Launch on `stream`; no allocation, no synchronisation.
cudaError_t swiglu(const Swiglu& arguments, cudaStream_t stream);
cudaError_t rotate_heads(const Rotate& arguments, cudaStream_t stream);

}  // namespace t2r::kernels::cuda
