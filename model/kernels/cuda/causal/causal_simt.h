#pragma once

#include "model/kernels/cuda/causal/causal_attention.h"

namespace t2r::kernels::cuda {

/// Causal linear attention from given features in float32 or float64 without tensor cores: for
/// exact work (float32 training, gradient checks) and for shapes that the tensor-core kernels do
/// not serve. Any head size and feature size up to 128. Fields of CausalArguments mean what they
/// mean there; states, sums and gradients of states are Scalars.
template <class Scalar>
struct SimtArguments {
  Shape shape;
  double floor = 0.0, added = 0.0;
  View q, k, v, o;
  const int* document_start = nullptr;
  const Scalar* initial_s = nullptr;
  const Scalar* initial_z = nullptr;
  Scalar* final_s = nullptr;
  Scalar* final_z = nullptr;
  Scalar* states =
      nullptr;  ///< [batch, query_heads, chunks, feature_size * head_size + feature_size]

  View grad_o, grad_q, grad_k, grad_v;
  const Scalar* grad_final_s = nullptr;
  const Scalar* grad_final_z = nullptr;
  Scalar* grad_initial_s = nullptr;
  Scalar* grad_initial_z = nullptr;
};

inline constexpr int kSimtChunk = 16;

/// Shared memory, in bytes, of a block of threads of either pass.
int64_t causal_simt_bytes(const Shape& shape, bool backward, int scalar_bytes);

template <class Scalar>
cudaError_t causal_forward_simt(const SimtArguments<Scalar>& arguments, cudaStream_t stream);
template <class Scalar>
cudaError_t causal_backward_simt(const SimtArguments<Scalar>& arguments, cudaStream_t stream);

}  // namespace t2r::kernels::cuda
