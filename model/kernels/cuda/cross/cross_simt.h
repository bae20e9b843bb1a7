#pragma once

#include "model/kernels/cuda/cross/cross_attention.h"

namespace t2r::kernels::cuda {

/// Cross-attention from given features in float32 or float64 without tensor cores: for exact work
/// (float32 training, gradient checks) and for shapes that the tensor-core kernels do not serve.
/// Any head size and feature size up to 128. Fields of CrossArguments mean what they mean there;
/// states and sums are Scalars, feature_size * (head_size + 1) each: S, then z.
template <class Scalar>
struct CrossSimtArguments {
  Shape shape;
  int source_length = 0;
  double floor = 0.0, added = 0.0;
  bool absolute = true;
  Cut queries, source;  ///< chunks of kCrossSimtChunk tokens
  View q, k, v, o;
  const unsigned char* source_mask = nullptr;
  Scalar* state = nullptr;  ///< [batch, state_heads, feature_size * (head_size + 1)]
  Scalar* sums = nullptr;   ///< forward: [batch, state_heads, source.segments], backward: [batch,
                            ///< query_heads, queries.segments]

  View grad_o, grad_q, grad_k, grad_v;
  Scalar* grad_state = nullptr;
};

inline constexpr int kCrossSimtChunk = 16;

/// Shared memory, in bytes, that a block of threads of either pass needs at most.
int64_t cross_simt_bytes(const Shape& shape, bool backward, int scalar_bytes);

template <class Scalar>
cudaError_t cross_forward_simt(const CrossSimtArguments<Scalar>& arguments, cudaStream_t stream);
template <class Scalar>
cudaError_t cross_backward_simt(const CrossSimtArguments<Scalar>& arguments, cudaStream_t stream);

}  // namespace t2r::kernels::cuda
