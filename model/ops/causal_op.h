#pragma once

#include <ATen/core/Tensor.h>

#include "model/kernels/cpu/causal_attention_cpu.h"

namespace t2r::ops {

using at::Tensor;
using model::kernels::DenominatorRule;

/// Arguments of causal linear attention on a GPU. Legend: B batch, T tokens, Hq >= M >= Hk, Hv
/// heads of queries, maps (or states), keys and values (each a multiple of the next), d head size,
/// K features. Undefined tensors are absent.
struct CausalInputs {
  Tensor q_BTHd;  ///< bfloat16, float32 or float64; with a map x of phi(x), without one phi(q)
                  ///< itself ([B, T, Hq, K])
  Tensor k_BTHd;
  Tensor v_BTHd;
  Tensor weight_MKd = {};  ///< the map: phi(x) = relu(scale W x + b), scale = 1 for keys
  Tensor bias_MK = {};
  /// int32: index of the first token of each token's document; negative for one that began before
  /// this call, and only its tokens see the initial state.
  Tensor document_start_BT = {};
  Tensor initial_s_BMKd = {};  ///< float32 (float64 for float64 inputs)
  Tensor initial_z_BMK = {};
  double scale = 1.0;
  DenominatorRule rule = {};
};

/// The same on a fused projection, without states and document boundaries: training's.
struct FusedAttention {
  Tensor qkv_BTHd;  ///< heads of q, then as many of k as of v
  int64_t query_heads = 0;
  Tensor weight_MKd, bias_MK;
  double scale = 1.0;
  DenominatorRule rule = {};
};

struct CausalOutputs {
  Tensor o_BTHd;  ///< like v, with q's heads
  Tensor s_BHKd;  ///< the state after the last token, if it is wanted
  Tensor z_BHK;
};

/// Causal linear attention on a GPU, differentiable in q, k, v, weight, bias and the initial state:
/// o_t = phi(q_t) S_t / max(phi(q_t) . z_t + added, floor). Runs on the current stream and can be
/// captured in a CUDA graph. bfloat16 runs on tensor cores in one kernel with the map; float32 and
/// float64 on ordinary ones, the map beside it. Deterministic. Registered as torch.ops.t2r.causal,
/// causal_with_state and causal_features (given features, with states).
/// @throws c10::Error  naming argument, value and what is allowed, if anything does not fit;
/// nothing has been launched
CausalOutputs causal(const CausalInputs& inputs, bool want_state = true);

/// o_BTHd of a fused projection, whose gradient is written where it belongs instead of put together
/// from three. Contract as causal(). Registered as torch.ops.t2r.causal_qkv.
Tensor causal_qkv(const FusedAttention& inputs);

}  // namespace t2r::ops
