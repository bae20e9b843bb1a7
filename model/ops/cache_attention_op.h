#pragma once

#include <ATen/core/Tensor.h>

namespace t2r::ops {

using at::Tensor;

/// One token of softmax attention for a batch of sequences on a GPU. Legend: B sequences, Hq query
/// heads, Hkv key/value heads (Hq is a multiple), C capacity, d head size (a multiple of 8, at most
/// 128).
struct CacheAttentionInputs {
  Tensor q_BHd;  ///< bfloat16 or float32, as all but length and tickets
  Tensor k_BHd;  ///< of the token, Hkv heads
  Tensor v_BHd;
  Tensor keys_BHCd;    ///< of the tokens before; changed in place
  Tensor values_BHCd;  ///< likewise
  Tensor length_1;  ///< int64, on the device: tokens before, 0 to C - 1, of every sequence; another
                    ///< one gives NaN, nothing changes
  Tensor tickets;   ///< int32, at least B Hq zeros, which they are again afterwards: how the parts
                    ///< of a cache find each other
  double scale = 1.0;  ///< of the scores
};

/// Appends the token's key and value to the cache and gives o = softmax(scale q K^T) V over the
/// tokens before and this one. One kernel, in float32 arithmetic; keys and values are read once for
/// up to four query heads of a group. The length lies on the device: captured in a CUDA graph, the
/// operator serves every position up to the capacity. Runs on the current stream. Deterministic,
/// and independent of the capacity. Not differentiable. Registered as
/// torch.ops.t2r.cache_attention_step.
/// @return  o_BHd, in q's dtype
/// @throws c10::Error  naming argument, value and what is allowed, if anything does not fit;
/// nothing has been changed
Tensor cache_attention_step(const CacheAttentionInputs& inputs);

}  // namespace t2r::ops
