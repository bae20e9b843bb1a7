#pragma once

#include <ATen/core/Tensor.h>

#include "model/kernels/cpu/causal_attention_cpu.h"

namespace t2r::ops {

using at::Tensor;
using model::kernels::DenominatorRule;

/// Arguments of linear cross-attention on a GPU. Legend: B batch, T queries' tokens, S source
/// tokens, Hq >= Hs >= Hk, Hv heads of queries, states, keys and values (each a multiple of the
/// next), d head size, K features. Undefined tensors are absent.
struct CrossInputs {
  Tensor q_BTHd;  ///< bfloat16, float32 or float64; with a map x of phi(x), without one phi(q)
                  ///< itself ([B, T, Hq, K])
  Tensor k_BSHd;
  Tensor v_BSHd;
  Tensor weight_MKd = {};  ///< the map: phi(x) = relu(scale W x + b), scale = 1 for keys
  Tensor bias_MK = {};
  Tensor source_mask_BS = {};  ///< bool: false for padding, which contributes nothing and is not
                               ///< read
  double scale = 1.0;
  DenominatorRule rule = {};
  bool absolute = true;  ///< the denominator is |phi(q) . z|: of use with signed features only
};

/// Linear cross-attention on a GPU, differentiable in q, k, v, weight and bias: S = sum of phi(k)
/// v^T and z = sum of phi(k) over the source, o_t = phi(q_t) S / max(|phi(q_t) . z| + added,
/// floor). Runs on the current stream and can be captured in a CUDA graph. bfloat16 runs on tensor
/// cores with the map inside the kernels; float32 and float64 on ordinary ones, the map beside
/// them. Deterministic. Registered as torch.ops.t2r.cross and cross_features.
/// @return  o_BTHd, like v, with q's tokens and heads
/// @throws c10::Error  naming argument, value and what is allowed, if anything does not fit;
/// nothing has been launched
Tensor cross(const CrossInputs& inputs);

}  // namespace t2r::ops
