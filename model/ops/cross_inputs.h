#pragma once

#include <ATen/core/Tensor.h>

#include <optional>

#include "model/kernels/cuda/causal/causal_attention.h"

namespace t2r::ops {

using at::Tensor;

/// Arguments of linear cross-attention on a GPU. Legend: B batch, T queries' tokens, S source
/// tokens, Hq >= Hs >= Hk, Hv heads of queries, states, keys and values (each a multiple of the
/// next), d head size, K features.
struct CrossInputs {
  Tensor q_BTHd;  ///< bfloat16, float32 or float64; with a map x of phi(x), without one phi(q)
                  ///< itself ([B, T, Hq, K])
  Tensor k_BSHd;
  Tensor v_BSHd;
  std::optional<Tensor> weight_HKd =
      {};  ///< the map: phi(x) = relu(scale W x + b), scale = 1 for keys
  std::optional<Tensor> bias_HK = {};
  std::optional<Tensor> source_mask_BS =
      {};  ///< bool: false for padding, which contributes nothing and is not read
  double scale = 1.0;
  double floor = 0.01;
  double added = 0.0;
  bool absolute = true;  ///< the denominator is |phi(q) . z|: of use with signed features only
};

/// Shape of `inputs`; its length is that of the queries.
/// @throws c10::Error  naming argument, value and what is allowed, if anything does not fit;
/// nothing has been launched
kernels::cuda::Shape check_cross(const CrossInputs& inputs);

}  // namespace t2r::ops
