#pragma once

#include <torch/types.h>

#include "model/kernels/cpu/causal_attention_cpu.h"

namespace t2r::model {

using kernels::DenominatorRule;

/// What causal linear attention carries from token to token: constant in the sequence's length.
/// Legend: B batch, Hs state heads, K features, V values per head.
struct LinearAttentionState {
  torch::Tensor s_BHKV;  ///< float32 (float64 for float64 inputs), sum of phi(k) v^T
  torch::Tensor z_BHK;   ///< the same dtype, sum of phi(k)
};

struct LinearAttentionOutput {
  torch::Tensor o_BTHV;
  LinearAttentionState state;  ///< after the last token
};

/// Causal linear attention from features, in its chunked form: cost linear in T.
///
/// o_t = phi(q_t) S_t / max(phi(q_t) . z_t + added, floor),  S_t = S_{t-1} + phi(k_t) v_t^T,  z_t =
/// z_{t-1} + phi(k_t)
///
/// @param phi_q_BTHK  features of the queries, Hq heads; float32 or float64, last dimension
/// contiguous (other strides
///                    are taken as they are, e.g. of a fused projection)
/// @param phi_k_BTHK  features of the keys, Hs heads; Hq is a multiple of Hs
/// @param v_BTHV      values, Hv heads; Hs is a multiple of Hv
/// @param initial     state before the first token; nullptr means zero
/// @return            o_BTHV with Hq heads, and the final state. Differentiable in all inputs, the
/// clamp included: a
///                    denominator on the floor has no gradient.
/// @throws ContractError  if shapes, dtypes or devices do not fit together; names argument, value
/// and what is allowed
/// @note  Deterministic: the result does not depend on the number of threads. T = 1 is the
/// recurrent form. Source: Kasai et al. 2021, section 2.2; chunks after Hua et al. 2022.
LinearAttentionOutput causal_linear_attention(const torch::Tensor& phi_q_BTHK,
                                              const torch::Tensor& phi_k_BTHK,
                                              const torch::Tensor& v_BTHV,
                                              const LinearAttentionState* initial,
                                              const DenominatorRule& rule);

/// State of zeros for `batch` sequences.
LinearAttentionState zero_state(int64_t batch,
                                int64_t state_heads,
                                int64_t feature_size,
                                int64_t value_size,
                                const torch::TensorOptions& options);

}  // namespace t2r::model
