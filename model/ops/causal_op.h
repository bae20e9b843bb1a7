#pragma once

#include <tuple>

#include "model/ops/causal_inputs.h"

namespace t2r::ops {

struct CausalOutputs {
  Tensor o_BTHd;  ///< like v, with q's heads
  Tensor s_BHKd;  ///< the state after the last token
  Tensor z_BHK;
};

/// Causal linear attention on a GPU, differentiable in q, k, v, weight, bias and the initial state:
/// o_t = phi(q_t) S_t / max(phi(q_t) . z_t + added, floor). Runs on the current stream and can be
/// captured in a CUDA graph. bfloat16 runs on tensor cores in one kernel with the map; float32 and
/// float64 on ordinary ones, the map beside it. Deterministic. Registered as torch.ops.t2r.causal,
/// causal_with_state, causal_features (given features, with states), and causal_qkv (a fused
/// projection, neither states nor document boundaries: training's).
/// @throws c10::Error  as check_causal()
CausalOutputs causal(const CausalInputs& inputs);

/// The passes on given features in bfloat16, without autograd: for operators that make the features
/// themselves.
struct FeaturesForward {
  Tensor o_BTHd;
  Tensor states;  ///< for the backward, if `save`
};
struct FeatureGradients {
  Tensor phi_q_BTHK, phi_k_BTHK, v_BTHd;
};
/// Whether the passes serve so many features and columns of v; both lie in units of 16 bytes then.
bool has_features_passes(int64_t features, int64_t head_size);
FeaturesForward causal_features_forward(const CausalInputs& inputs, bool save);
/// @param grad_v_BTHd  memory for that gradient if v has as many heads as q, or undefined
/// @return             gradients with the heads of their tensors
FeatureGradients causal_features_backward(const CausalInputs& inputs,
                                          const Tensor& states,
                                          const Tensor& grad_o,
                                          const Tensor& grad_v_BTHd);

}  // namespace t2r::ops
