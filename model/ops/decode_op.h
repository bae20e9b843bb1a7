#pragma once

#include <ATen/core/Tensor.h>

#include "model/kernels/cpu/causal_attention_cpu.h"

namespace t2r::ops {

using at::Tensor;
using model::kernels::DenominatorRule;

/// One token for a batch of sequences on a GPU. Legend: B sequences, Hq >= Hs >= Hk, Hv heads of
/// queries, states, keys and values (each a multiple of the next; at most 64 query heads a state),
/// d head size (32, 64, 128), K features (1 to 128).
struct DecodeInputs {
  Tensor q_BHd;  ///< bfloat16 or float32; with a map x of phi(x), without one phi(q) itself ([B,
                 ///< Hq, K])
  Tensor k_BHd;
  Tensor v_BHd;
  Tensor weight_MKd;  ///< the map: phi(x) = relu(scale W x + b), scale = 1 for keys; or undefined
  Tensor bias_MK;
  Tensor s_BHKd;  ///< float32, updated in place
  Tensor z_BHK;   ///< float32, updated in place
  double scale = 1.0;
  DenominatorRule rule = {};
};

/// The recurrent form of causal linear attention: S += phi(k) v^T, z += phi(k), then o = phi(q) S /
/// max(phi(q) . z + added, floor). One kernel, the map included, in float32 arithmetic; every state
/// is read and written once. Runs on the current stream and can be captured in a CUDA graph.
/// Deterministic. Not differentiable. Registered as torch.ops.t2r.decode_step (given features) and
/// decode_step_map.
/// @return  o_BHd, in q's dtype
/// @throws c10::Error  naming argument, value and what is allowed, if anything does not fit;
/// nothing has been changed
Tensor decode_step(const DecodeInputs& inputs);

}  // namespace t2r::ops
