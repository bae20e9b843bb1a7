#pragma once

#include <torch/types.h>

#include <tuple>

#include "model/attention/linear_attention.h"
#include "model/loss.h"
#include "model/ops/operators.h"
#include "model/search/sampling.h"

/// The model's operations on a GPU: the operators of libt2r_ops (model/ops), in a table that the
/// program registers which links them, so that the model itself links no CUDA.
///
/// All take bfloat16 or float32, run on the current stream, never wait for the device and can be
/// captured in a CUDA graph. A bias or position that is absent is an undefined tensor. Called by
/// the functions of the same names that do not name a device.
namespace t2r::model::gpu {

using torch::Tensor;

/// Once, before the first tensor is on a GPU; returns true.
bool register_operators(const ops::Operators& operators);

/// LayerNorm of the last dimension, or without bias RMSNorm.
Tensor norm(const Tensor& x, const Tensor& weight, const Tensor& bias, double eps);

/// x + delta, and its norm; one kernel each way.
std::tuple<Tensor, Tensor> add_norm(
    const Tensor& x, const Tensor& delta, const Tensor& weight, const Tensor& bias, double eps);

/// x W^T + b, or x W + b with an input-major weight.
Tensor linear(const Tensor& x, const Tensor& weight, const Tensor& bias, bool is_input_major);

/// gelu_tanh(x W1 + b1) W2 + b2.
Tensor mlp_gelu(const Tensor& x,
                const Tensor& weight1,
                const Tensor& bias1,
                const Tensor& weight2,
                const Tensor& bias2,
                bool is_input_major);

Tensor swiglu(const Tensor& gate_up);
Tensor rotate_heads(const Tensor& x_BTHd,
                    int64_t num_heads,
                    const Tensor& cosine_Td,
                    const Tensor& sine_Td);

/// Rows of weight_VD, plus position_TD where given.
Tensor embedding(const Tensor& weight_VD, const Tensor& tokens_BT, const Tensor& position_TD);

Tensor linear_cross_entropy_sum(const Tensor& x_ND,
                                const Tensor& weight_VD,
                                const Tensor& targets_N);
Tensor linear_cross_entropy_values(const Tensor& x_ND,
                                   const Tensor& weight_VD,
                                   const Tensor& targets_N);

Tensor linear_distillation_sum(const Tensor& x_ND,
                               const Tensor& weight_VD,
                               const Tensor& targets_N,
                               const TeacherHead& teacher);

/// Causal linear attention with the map phi(x) = relu(scale W x + b) inside (scale 1 for keys);
/// `initial` comes beside the inputs.
using MappedAttention = ops::CausalInputs;
LinearAttentionOutput causal_linear_attention(const MappedAttention& inputs,
                                              const LinearAttentionState* initial);

/// The same on a fused projection [B, T, heads of q, k, v, d] and without states, for training.
using ops::FusedAttention;
Tensor causal_linear_attention(const FusedAttention& inputs);

/// The same from features.
LinearAttentionOutput causal_linear_attention(const Tensor& phi_q_BTHK,
                                              const Tensor& phi_k_BTHK,
                                              const Tensor& v_BTHV,
                                              const LinearAttentionState* initial,
                                              const DenominatorRule& rule);

/// Hedgehog's map [softmax(W x + b), softmax(-W x - b)] of queries and keys: phi(q), phi(k).
std::tuple<Tensor, Tensor> hedgehog_features(const Tensor& q_BTHd,
                                             const Tensor& k_BTHd,
                                             const Tensor& weight_MRd,
                                             const Tensor& bias_MR);

/// Attention with that map on a fused projection, without states; `scale` is not read.
Tensor causal_hedgehog(const FusedAttention& inputs);

/// One token with T2R's map inside; `state` moves on in place.
Tensor decode_step(const MappedAttention& inputs, LinearAttentionState& state);

/// The same from features.
Tensor decode_step(const Tensor& phi_q_BTHK,
                   const Tensor& phi_k_BTHK,
                   const Tensor& v_BTHd,
                   LinearAttentionState& state,
                   const DenominatorRule& rule);

/// One token of softmax attention; its key and value become row `length` of the cache.
struct CacheAttention {
  Tensor q_BTHd, k_BTHd, v_BTHd;
  Tensor keys_BHCd, values_BHCd;
  Tensor length_1;  ///< int64 on the device
  Tensor tickets;   ///< int32 zeros, B H of them
  double scale = 1.0;
};
Tensor cache_attention_step(const CacheAttention& inputs);

/// Whether cache_attention_step has heads of this size.
bool has_cache_attention(int64_t head_dim);

/// A projection of the few rows of a step, with what stands before and behind it, in bfloat16:
/// f(norm(x) W^T + b) + residual.
using StepLinear = ops::StepLinearInputs;
Tensor step_linear(const StepLinear& inputs);

/// The most rows that step_linear takes with so many inputs on the current device, behind `norms`
/// vectors, with `pairs` (swiglu or RoPE) or without; 0: none.
int64_t most_step_rows(int64_t inputs, int64_t norms, bool pairs);

/// The most probable or drawn tokens (model/search/sampling.h) become tokens_N, and row position %
/// R of history_RN; -1 there where nothing could be drawn.
void draw_token(const Tensor& logits_NV,
                const Tensor& tokens_N,
                const Tensor& history_RN,
                const Tensor& position_1,
                const SamplingOptions& options);

}  // namespace t2r::model::gpu
