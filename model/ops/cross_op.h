#pragma once

#include "model/ops/cross_inputs.h"

namespace t2r::ops {

/// Linear cross-attention on a GPU, differentiable in q, k, v, weight and bias: S = sum of phi(k)
/// v^T and z = sum of phi(k) over the source, o_t = phi(q_t) S / max(|phi(q_t) . z| + added,
/// floor). Runs on the current stream and can be captured in a CUDA graph. bfloat16 runs on tensor
/// cores with the map inside the kernels; float32 and float64 on ordinary ones, the map beside
/// them. Deterministic. Registered as torch.ops.t2r.cross and cross_features.
/// @return  o_BTHd, like v, with q's tokens and heads
/// @throws c10::Error  as check_cross()
Tensor cross(const CrossInputs& inputs);

}  // namespace t2r::ops
