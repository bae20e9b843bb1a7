#pragma once

#include <tuple>

#include "model/ops/causal_inputs.h"

namespace t2r::ops {

struct CausalOutputs {
  Tensor o_BTHd;   ///< like v, with q's heads
  Tensor s_BHKd;   ///< the state after the last token
  Tensor z_BHK;
};

/// Causal linear attention on a GPU, differentiable in q, k, v, weight, bias and the initial state:
/// o_t = phi(q_t) S_t / max(phi(q_t) . z_t + added, floor). Runs on the current stream and can be captured in a CUDA graph.
/// bfloat16 runs on tensor cores in one kernel with the map; float32 and float64 on ordinary ones, the map beside it.
/// Deterministic. Registered as torch.ops.t2r.causal (and causal_with_state, causal_features, causal_features_with_state).
/// @throws c10::Error  as check_causal()
CausalOutputs causal(const CausalInputs& inputs);

}  // namespace t2r::ops
