#pragma once

#include <ATen/core/Tensor.h>

#include <tuple>

#include "model/ops/causal_op.h"

namespace t2r::ops {

/// Hedgehog's map phi(x) = [softmax(W x + b), softmax(-W x - b)] of queries and keys on a GPU,
/// differentiable in all inputs. bfloat16, with head size 32, 64 or 128 and at most 64 rows of W:
/// one kernel for both tensors, x as it lies, float32 between products and phi; the backward makes
/// phi again. Else the product by LibTorch and, in float32, one kernel for both softmaxes; bfloat16
/// goes by float32. Runs on the current stream, can be captured in a CUDA graph, deterministic.
/// Registered as torch.ops.t2r.hedgehog_features.
/// Legend: B batch, T tokens, Hq, Hk heads, d head size, M maps (a multiple of H, or H of it, for
/// either H), R rows.
/// @param q_BTHd, k_BTHd  bfloat16, float32 or float64
/// @param weight_MRd, bias_MR  of the same dtype
/// @return  [B, T, max(Hq, M), 2 R] and [B, T, max(Hk, M), 2 R]
/// @throws c10::Error  naming argument, value and what is allowed, if anything does not fit;
/// nothing has been launched
/// Source: Zhang et al. 2024 (arXiv:2402.04347), the normalised form.
std::tuple<Tensor, Tensor> hedgehog_features(const Tensor& q_BTHd,
                                             const Tensor& k_BTHd,
                                             const Tensor& weight_MRd,
                                             const Tensor& bias_MR);

/// Causal linear attention with that map on a fused projection [B, T, heads of q, k, v, d], for
/// training: its gradient is written where it belongs instead of put together from three. Contract
/// as hedgehog_features() and causal() (causal_op.h); `scale` is not read. Registered as
/// torch.ops.t2r.causal_hedgehog.
/// @return  o_BTHd
Tensor causal_hedgehog(const FusedAttention& inputs);

}  // namespace t2r::ops
