#pragma once

#include <ATen/core/Tensor.h>

#include <array>
#include <optional>

#include "model/kernels/cuda/causal/causal_attention.h"

namespace t2r::ops {

using at::Tensor;

/// Arguments of causal linear attention on a GPU. Legend: B batch, T tokens, Hq >= Hs >= Hk, Hv
/// heads of queries, states, keys and values (each a multiple of the next), d head size, K
/// features.
struct CausalInputs {
  Tensor q_BTHd;  ///< bfloat16, float32 or float64; with a map x of phi(x), without one phi(q)
                  ///< itself ([B, T, Hq, K])
  Tensor k_BTHd;
  Tensor v_BTHd;
  std::optional<Tensor> weight_HKd =
      {};  ///< the map: phi(x) = relu(scale W x + b), scale = 1 for keys
  std::optional<Tensor> bias_HK = {};
  /// int32: index of the first token of each token's document; negative for one that began before
  /// this call, and only its tokens see the initial state.
  std::optional<Tensor> document_start_BT = {};
  std::optional<Tensor> initial_s_BHKd = {};  ///< float32 (float64 for float64 inputs)
  std::optional<Tensor> initial_z_BHK = {};
  double scale = 1.0;
  double floor = 0.01;
  double added = 0.0;
};

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
