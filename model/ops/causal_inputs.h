#pragma once

#include <array>

#include "model/kernels/cuda/causal/causal_attention.h"
#include "model/ops/causal_op.h"

namespace t2r::ops {

/// Shape of `inputs`.
/// @throws c10::Error  naming argument, value and what is allowed, if anything does not fit;
/// nothing has been launched
kernels::cuda::Shape check_causal(const CausalInputs& inputs);

/// The same, if 16-byte copies can read `tensor` as it stands: columns contiguous, other strides
/// multiples of 8.
void check_bf16_strides(const Tensor& tensor, const char* name);

/// q, k and v of a fused projection [B, T, heads of q, k, v, d], as views; k and v have as many
/// heads as each other.
/// @throws c10::Error  naming value and what is allowed, if it has other dimensions or numbers of
/// heads
std::array<Tensor, 3> qkv_parts(const Tensor& qkv_BTHd, int64_t query_heads);

/// Whether autograd would want something of this call for later.
bool needs_gradient(const CausalInputs& inputs);

}  // namespace t2r::ops
