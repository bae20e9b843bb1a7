#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

/// Normalisation of rows, fused with the residual sum in front of it. No LibTorch.
namespace t2r::kernels::cuda {

inline constexpr int kMaxNormWidth = 16384;

/// sum = x + delta, rounded to the rows' dtype; y = weight (sum - mean) / sqrt(variance + eps) +
/// bias (LayerNorm), without a bias y = weight sum / sqrt(mean square + eps) (RMSNorm). Rows are
/// contiguous, [rows, width].
struct NormForward {
  int64_t rows = 0;
  int width = 0;  ///< 1 to kMaxNormWidth
  float eps = 0.0F;
  bool bf16_rows = false;
  bool bf16_weight = false;  ///< weight and bias
  const void* x = nullptr;
  const void* delta = nullptr;  ///< null: sum is x, and is not written
  const void* weight = nullptr;
  const void* bias = nullptr;  ///< null: RMSNorm
  void* sum = nullptr;
  void* y = nullptr;
  float* mean = nullptr;         ///< [rows]; LayerNorm only
  float* inverse_std = nullptr;  ///< [rows]
};

struct NormBackward {
  int64_t rows = 0;
  int width = 0;
  bool layer_norm = false;
  bool bf16_rows = false;
  bool bf16_weight = false;
  const void* sum = nullptr;
  const void* weight = nullptr;
  const float* mean = nullptr;  ///< LayerNorm only
  const float* inverse_std = nullptr;
  const void* grad_sum = nullptr;  ///< null: zeros
  const void* grad_y = nullptr;
  void* grad_x = nullptr;       ///< grad_sum + the gradient through the norm
  int blocks = 0;               ///< what norm_backward_blocks() says
  float* partial = nullptr;     ///< [1, or 2 for LayerNorm][blocks][width]
  void* grad_weight = nullptr;  ///< weight's dtype
  void* grad_bias = nullptr;    ///< LayerNorm only
};

/// Blocks of threads of the backward kernel: it depends on the shape, the dtype and the device
/// alone.
int norm_backward_blocks(const NormBackward& arguments, int multiprocessors);

/// Shared memory, in bytes, that a block of threads of the backward needs at most.
int64_t norm_backward_bytes(int width, bool layer_norm);

/// Launch on `stream`; rows >= 1; no allocation, no synchronisation; deterministic.
cudaError_t norm_forward(const NormForward& arguments, int multiprocessors, cudaStream_t stream);
cudaError_t norm_backward(const NormBackward& arguments, cudaStream_t stream);

}  // namespace t2r::kernels::cuda
