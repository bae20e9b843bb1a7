#include "model/gpu_ops.h"

#include "base/error.h"
#include "model/kernels/cuda/decode/step_limits.h"

namespace t2r::model::gpu {
namespace {

const ops::Operators* registered = nullptr;

const ops::Operators& operators() {
  require(registered != nullptr,
          "there are no GPU operators: tensors on a GPU need the program t2r_gpu (libt2r_ops)");
  return *registered;
}

std::optional<Tensor> optional(const Tensor& tensor) {
  return tensor.defined() ? std::optional<Tensor>(tensor) : std::nullopt;
}

LinearAttentionOutput output_of(const ops::CausalOutputs& out) {
  return {out.o_BTHd, {out.s_BHKd, out.z_BHK}};
}

}  // namespace

bool register_operators(const ops::Operators& operators) {
  registered = &operators;
  return true;
}

Tensor norm(const Tensor& x, const Tensor& weight, const Tensor& bias, double eps) {
  return operators().norm(x, weight, optional(bias), eps);
}

std::tuple<Tensor, Tensor> add_norm(
    const Tensor& x, const Tensor& delta, const Tensor& weight, const Tensor& bias, double eps) {
  return operators().add_norm(x, delta, weight, optional(bias), eps);
}

Tensor linear(const Tensor& x, const Tensor& weight, const Tensor& bias, bool is_input_major) {
  return operators().linear(
      x, {.weight = weight, .bias = optional(bias), .input_major = is_input_major});
}

Tensor mlp_gelu(const Tensor& x,
                const Tensor& weight1,
                const Tensor& bias1,
                const Tensor& weight2,
                const Tensor& bias2,
                bool is_input_major) {
  return operators().mlp_gelu(x,
                              {.weight = weight1, .bias = bias1, .input_major = is_input_major},
                              {.weight = weight2, .bias = bias2, .input_major = is_input_major});
}

Tensor swiglu(const Tensor& gate_up) {
  return operators().swiglu(gate_up);
}

Tensor rotate_heads(const Tensor& x_BTHd,
                    int64_t num_heads,
                    const Tensor& cosine_Td,
                    const Tensor& sine_Td) {
  return operators().rotate_heads(x_BTHd, num_heads, cosine_Td, sine_Td);
}

Tensor embedding(const Tensor& weight_VD, const Tensor& tokens_BT, const Tensor& position_TD) {
  return operators().embedding(weight_VD, tokens_BT, optional(position_TD));
}

Tensor linear_cross_entropy_sum(const Tensor& x_ND,
                                const Tensor& weight_VD,
                                const Tensor& targets_N) {
  return operators().linear_cross_entropy_sum(x_ND, weight_VD, targets_N, /*chunk_rows=*/0);
}

Tensor linear_cross_entropy_values(const Tensor& x_ND,
                                   const Tensor& weight_VD,
                                   const Tensor& targets_N) {
  return operators().linear_cross_entropy_values(x_ND, weight_VD, targets_N, /*chunk_rows=*/0);
}

Tensor linear_distillation_sum(const Tensor& x_ND,
                               const Tensor& weight_VD,
                               const Tensor& targets_N,
                               const TeacherHead& teacher) {
  return operators().linear_distillation_sum(
      x_ND,
      weight_VD,
      targets_N,
      {.x_NE = teacher.x_NE, .weight_VE = teacher.weight_VE, .share = teacher.share},
      /*chunk_rows=*/0);
}

Tensor causal_linear_attention(const FusedAttention& inputs) {
  return operators().causal_qkv(inputs);
}

LinearAttentionOutput causal_linear_attention(const MappedAttention& inputs,
                                              const LinearAttentionState* initial) {
  MappedAttention in = inputs;
  if (initial != nullptr) in.initial_s_BMKd = initial->s_BHKV, in.initial_z_BMK = initial->z_BHK;
  return output_of(operators().causal(in, /*want_state=*/true));
}

LinearAttentionOutput causal_linear_attention(const Tensor& phi_q_BTHK,
                                              const Tensor& phi_k_BTHK,
                                              const Tensor& v_BTHV,
                                              const LinearAttentionState* initial,
                                              const DenominatorRule& rule) {
  return causal_linear_attention(
      {.q_BTHd = phi_q_BTHK, .k_BTHd = phi_k_BTHK, .v_BTHd = v_BTHV, .rule = rule}, initial);
}

std::tuple<Tensor, Tensor> hedgehog_features(const Tensor& q_BTHd,
                                             const Tensor& k_BTHd,
                                             const Tensor& weight_MRd,
                                             const Tensor& bias_MR) {
  return operators().hedgehog_features(q_BTHd, k_BTHd, weight_MRd, bias_MR);
}

Tensor causal_hedgehog(const FusedAttention& inputs) {
  return operators().causal_hedgehog(inputs);
}

Tensor decode_step(const MappedAttention& in, LinearAttentionState& state) {
  return operators()
      .decode_step({.q_BHd = in.q_BTHd.squeeze(1),
                    .k_BHd = in.k_BTHd.squeeze(1),
                    .v_BHd = in.v_BTHd.squeeze(1),
                    .weight_MKd = in.weight_MKd,
                    .bias_MK = in.bias_MK,
                    .s_BHKd = state.s_BHKV,
                    .z_BHK = state.z_BHK,
                    .scale = in.scale,
                    .rule = in.rule})
      .unsqueeze(1);
}

Tensor decode_step(const Tensor& phi_q_BTHK,
                   const Tensor& phi_k_BTHK,
                   const Tensor& v_BTHd,
                   LinearAttentionState& state,
                   const DenominatorRule& rule) {
  return decode_step({.q_BTHd = phi_q_BTHK, .k_BTHd = phi_k_BTHK, .v_BTHd = v_BTHd, .rule = rule},
                     state);
}

Tensor cache_attention_step(const CacheAttention& in) {
  return operators()
      .cache_attention_step({.q_BHd = in.q_BTHd.squeeze(1),
                             .k_BHd = in.k_BTHd.squeeze(1),
                             .v_BHd = in.v_BTHd.squeeze(1),
                             .keys_BHCd = in.keys_BHCd,
                             .values_BHCd = in.values_BHCd,
                             .length_1 = in.length_1,
                             .tickets = in.tickets,
                             .scale = in.scale})
      .unsqueeze(1);
}

bool has_cache_attention(int64_t head_dim) {
  return head_dim % 8 == 0 && head_dim <= t2r::kernels::cuda::kMaxCacheHead;
}

Tensor step_linear(const StepLinear& inputs) {
  return operators().step_linear(inputs);
}

int64_t most_step_rows(int64_t inputs, int64_t norms, bool pairs) {
  return operators().most_step_rows(inputs, norms, pairs);
}

void draw_token(const Tensor& logits_NV,
                const Tensor& tokens_N,
                const Tensor& history_RN,
                const Tensor& position_1,
                const SamplingOptions& options) {
  operators().draw_token({.logits_NV = logits_NV,
                          .tokens_N = tokens_N,
                          .history_RN = history_RN,
                          .position_1 = position_1,
                          .temperature = options.temperature,
                          .top_k = options.top_k,
                          .top_p = options.top_p,
                          .seed = options.stream_seed()});
}

}  // namespace t2r::model::gpu
