#pragma once

#include "model/kernels/cuda/causal/causal_attention.h"

/// Hedgehog's map phi(x) = [softmax(W x + b), softmax(-W x - b)]. No LibTorch.
namespace t2r::kernels::cuda {

inline constexpr int kMaxHedgehogRows = 64;  ///< of W: half of the features

/// Heads that go through the map: head h of phi is head h x_heads / heads of x under map h maps /
/// heads.
struct HedgehogHeads {
  View x;  ///< bf16, 16-byte aligned rows
  int x_heads = 0;
  int heads = 0;  ///< of phi: the larger of x_heads and maps
  View phi;       ///< bf16 [batch, length, heads, 2 rows]; forward writes it
  View grad_phi;  ///< backward reads it, 16-byte aligned rows where `rows` is a multiple of 8
  View grad_x;    ///< backward writes it, with `heads` heads
};

/// Queries and keys in one launch; products of bf16 values, all else in float32.
struct HedgehogMap {
  int batch = 0, length = 0;
  int maps = 0, rows = 0, head_size = 0;  ///< rows 1 to 64; head size 32, 64 or 128
  HedgehogHeads tensors[2];
  const void* weight = nullptr;  ///< bf16 [maps, rows, head_size], 16-byte aligned
  const void* bias = nullptr;    ///< bf16 [maps, rows]
  bool early = false;            ///< forward starts while the kernel before it ends

  // Backward.
  float* weight_parts =
      nullptr;                  ///< [hedgehog_parts(), maps, rows, head_size], memory for this call
  float* bias_parts = nullptr;  ///< [hedgehog_parts(), maps, rows]
  void* grad_weight = nullptr;  ///< bf16, as weight
  void* grad_bias = nullptr;
};

/// Parts in which the backward adds up the map's gradients; they depend on the shape alone, and so
/// does the order of the sum.
int hedgehog_parts(const HedgehogMap& arguments);

/// Launch on `stream`: one kernel forward, three backward; no allocation, no synchronisation.
/// Deterministic.
cudaError_t hedgehog_forward(const HedgehogMap& arguments, cudaStream_t stream);
cudaError_t hedgehog_backward(const HedgehogMap& arguments, cudaStream_t stream);

/// phi of given y = W x + b, [rows, width] -> [rows, 2 width]; with grad_phi: grad_y instead.
/// float32.
struct SoftmaxPair {
  int64_t rows = 0, width = 0;
  const float* y = nullptr;
  float* phi = nullptr;
  const float* grad_phi = nullptr;
  float* grad_y = nullptr;
};
cudaError_t softmax_pair(const SoftmaxPair& arguments, cudaStream_t stream);

}  // namespace t2r::kernels::cuda
