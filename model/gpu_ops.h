#pragma once

#include <torch/types.h>

#include <tuple>

#include "model/linear_attention.h"

/// The model's operations on a GPU: operators of libt2r_ops (model/ops), found by name in
/// LibTorch's dispatcher, so that the model itself links no CUDA.
///
/// All take bfloat16 or float32, run on the current stream, never wait for the device and can be
/// captured in a CUDA graph. A bias or position that is absent is an undefined tensor. Called by
/// the functions of the same names that do not name a device.
namespace t2r::model::gpu {

using torch::Tensor;

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

/// Causal linear attention with the map phi(x) = relu(scale W x + b) inside (scale 1 for keys).
struct MappedAttention {
  Tensor q_BTHd, k_BTHd, v_BTHd;
  Tensor weight_MKd, bias_MK;
  double scale = 1.0;
  DenominatorRule rule;
};
LinearAttentionOutput causal_linear_attention(const MappedAttention& inputs,
                                              const LinearAttentionState* initial);

/// The same on a fused projection [B, T, heads of q, k, v, d] and without states, for training.
struct FusedAttention {
  Tensor qkv_BTHd;
  int64_t query_heads = 0;
  Tensor weight_MKd, bias_MK;
  double scale = 1.0;
  DenominatorRule rule;
};
Tensor causal_linear_attention(const FusedAttention& inputs);

/// The same from features.
LinearAttentionOutput causal_linear_attention(const Tensor& phi_q_BTHK,
                                              const Tensor& phi_k_BTHK,
                                              const Tensor& v_BTHV,
                                              const LinearAttentionState* initial,
                                              const DenominatorRule& rule);

/// One token with the map inside; `state` moves on in place.
Tensor decode_step(const MappedAttention& inputs, LinearAttentionState& state);

}  // namespace t2r::model::gpu
