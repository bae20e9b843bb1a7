#include "model/gpu_ops.h"

#include <ATen/core/dispatch/Dispatcher.h>

#include "base/error.h"
#include "model/kernels/cuda/decode/step_limits.h"

namespace t2r::model::gpu {
namespace {

using c10::Dispatcher;

template <class Signature>
c10::TypedOperatorHandle<Signature> find(const char* name) {
  const auto schema = Dispatcher::singleton().findSchema({concat("t2r::", name), ""});
  if (!schema.has_value()) {
    throw ContractError(
        concat("operator t2r::",
               name,
               " is not loaded: tensors on a GPU need the program t2r_gpu (libt2r_ops)"));
  }
  return schema->typed<Signature>();
}

std::optional<Tensor> optional(const Tensor& tensor) {
  return tensor.defined() ? std::optional<Tensor>(tensor) : std::nullopt;
}

using OptionalTensor = std::optional<Tensor>;

}  // namespace

Tensor norm(const Tensor& x, const Tensor& weight, const Tensor& bias, double eps) {
  using Signature = Tensor(const Tensor&, const Tensor&, const OptionalTensor&, double);
  static const auto op = find<Signature>("norm");
  return op.call(x, weight, optional(bias), eps);
}

std::tuple<Tensor, Tensor> add_norm(
    const Tensor& x, const Tensor& delta, const Tensor& weight, const Tensor& bias, double eps) {
  using Signature = std::tuple<Tensor, Tensor>(
      const Tensor&, const OptionalTensor&, const Tensor&, const OptionalTensor&, double);
  static const auto op = find<Signature>("add_norm");
  return op.call(x, delta, weight, optional(bias), eps);
}

Tensor linear(const Tensor& x, const Tensor& weight, const Tensor& bias, bool is_input_major) {
  using Signature = Tensor(const Tensor&, const Tensor&, const OptionalTensor&, bool);
  static const auto op = find<Signature>("linear");
  return op.call(x, weight, optional(bias), is_input_major);
}

Tensor mlp_gelu(const Tensor& x,
                const Tensor& weight1,
                const Tensor& bias1,
                const Tensor& weight2,
                const Tensor& bias2,
                bool is_input_major) {
  using Signature =
      Tensor(const Tensor&, const Tensor&, const Tensor&, const Tensor&, const Tensor&, bool);
  static const auto op = find<Signature>("mlp_gelu");
  return op.call(x, weight1, bias1, weight2, bias2, is_input_major);
}

Tensor swiglu(const Tensor& gate_up) {
  static const auto op = find<Tensor(const Tensor&)>("swiglu");
  return op.call(gate_up);
}

Tensor rotate_heads(const Tensor& x_BTHd,
                    int64_t num_heads,
                    const Tensor& cosine_Td,
                    const Tensor& sine_Td) {
  using Signature = Tensor(const Tensor&, int64_t, const Tensor&, const Tensor&);
  static const auto op = find<Signature>("rotate_heads");
  return op.call(x_BTHd, num_heads, cosine_Td, sine_Td);
}

Tensor embedding(const Tensor& weight_VD, const Tensor& tokens_BT, const Tensor& position_TD) {
  using Signature = Tensor(const Tensor&, const Tensor&, const OptionalTensor&);
  static const auto op = find<Signature>("embedding");
  return op.call(weight_VD, tokens_BT, optional(position_TD));
}

Tensor linear_cross_entropy_sum(const Tensor& x_ND,
                                const Tensor& weight_VD,
                                const Tensor& targets_N) {
  using Signature = Tensor(const Tensor&, const Tensor&, const Tensor&, int64_t);
  static const auto op = find<Signature>("linear_cross_entropy_sum");
  return op.call(x_ND, weight_VD, targets_N, /*chunk_rows=*/0);
}

Tensor linear_cross_entropy_values(const Tensor& x_ND,
                                   const Tensor& weight_VD,
                                   const Tensor& targets_N) {
  using Signature = Tensor(const Tensor&, const Tensor&, const Tensor&, int64_t);
  static const auto op = find<Signature>("linear_cross_entropy_values");
  return op.call(x_ND, weight_VD, targets_N, /*chunk_rows=*/0);
}

Tensor linear_distillation_sum(const Tensor& x_ND,
                               const Tensor& weight_VD,
                               const Tensor& targets_N,
                               const TeacherHead& teacher) {
  using Signature = Tensor(
      const Tensor&, const Tensor&, const Tensor&, const Tensor&, const Tensor&, double, int64_t);
  static const auto op = find<Signature>("linear_distillation_sum");
  return op.call(x_ND,
                 weight_VD,
                 targets_N,
                 teacher.x_NE,
                 teacher.weight_VE,
                 teacher.share,
                 /*chunk_rows=*/0);
}

Tensor causal_linear_attention(const FusedAttention& in) {
  using Signature =
      Tensor(const Tensor&, const Tensor&, const Tensor&, int64_t, double, double, double);
  static const auto op = find<Signature>("causal_qkv");
  return op.call(in.qkv_BTHd,
                 in.weight_MKd,
                 in.bias_MK,
                 in.query_heads,
                 in.scale,
                 in.rule.floor,
                 in.rule.added);
}

LinearAttentionOutput causal_linear_attention(const MappedAttention& in,
                                              const LinearAttentionState* initial) {
  using Signature = std::tuple<Tensor, Tensor, Tensor>(const Tensor&,
                                                       const Tensor&,
                                                       const Tensor&,
                                                       const Tensor&,
                                                       const Tensor&,
                                                       const OptionalTensor&,
                                                       const OptionalTensor&,
                                                       double,
                                                       double,
                                                       double,
                                                       const OptionalTensor&);
  static const auto op = find<Signature>("causal_with_state");
  const auto [o, s, z] = op.call(in.q_BTHd,
                                 in.k_BTHd,
                                 in.v_BTHd,
                                 in.weight_MKd,
                                 in.bias_MK,
                                 initial != nullptr ? optional(initial->s_BHKV) : std::nullopt,
                                 initial != nullptr ? optional(initial->z_BHK) : std::nullopt,
                                 in.scale,
                                 in.rule.floor,
                                 in.rule.added,
                                 std::nullopt);
  return {o, {s, z}};
}

LinearAttentionOutput causal_linear_attention(const Tensor& phi_q_BTHK,
                                              const Tensor& phi_k_BTHK,
                                              const Tensor& v_BTHV,
                                              const LinearAttentionState* initial,
                                              const DenominatorRule& rule) {
  using Signature = std::tuple<Tensor, Tensor, Tensor>(const Tensor&,
                                                       const Tensor&,
                                                       const Tensor&,
                                                       const OptionalTensor&,
                                                       const OptionalTensor&,
                                                       double,
                                                       double,
                                                       const OptionalTensor&);
  static const auto op = find<Signature>("causal_features");
  const auto [o, s, z] = op.call(phi_q_BTHK,
                                 phi_k_BTHK,
                                 v_BTHV,
                                 initial != nullptr ? optional(initial->s_BHKV) : std::nullopt,
                                 initial != nullptr ? optional(initial->z_BHK) : std::nullopt,
                                 rule.floor,
                                 rule.added,
                                 std::nullopt);
  return {o, {s, z}};
}

std::tuple<Tensor, Tensor> hedgehog_features(const Tensor& q_BTHd,
                                             const Tensor& k_BTHd,
                                             const Tensor& weight_MRd,
                                             const Tensor& bias_MR) {
  using Signature =
      std::tuple<Tensor, Tensor>(const Tensor&, const Tensor&, const Tensor&, const Tensor&);
  static const auto op = find<Signature>("hedgehog_features");
  return op.call(q_BTHd, k_BTHd, weight_MRd, bias_MR);
}

Tensor causal_hedgehog(const FusedAttention& in) {
  using Signature = Tensor(const Tensor&, const Tensor&, const Tensor&, int64_t, double, double);
  static const auto op = find<Signature>("causal_hedgehog");
  return op.call(
      in.qkv_BTHd, in.weight_MKd, in.bias_MK, in.query_heads, in.rule.floor, in.rule.added);
}

Tensor decode_step(const MappedAttention& in, LinearAttentionState& state) {
  using Signature = Tensor(const Tensor&,
                           const Tensor&,
                           const Tensor&,
                           const Tensor&,
                           const Tensor&,
                           const Tensor&,
                           const Tensor&,
                           double,
                           double,
                           double);
  static const auto op = find<Signature>("decode_step_map");
  return op
      .call(in.q_BTHd.squeeze(1),
            in.k_BTHd.squeeze(1),
            in.v_BTHd.squeeze(1),
            in.weight_MKd,
            in.bias_MK,
            state.s_BHKV,
            state.z_BHK,
            in.scale,
            in.rule.floor,
            in.rule.added)
      .unsqueeze(1);
}

Tensor decode_step(const Tensor& phi_q_BTHK,
                   const Tensor& phi_k_BTHK,
                   const Tensor& v_BTHd,
                   LinearAttentionState& state,
                   const DenominatorRule& rule) {
  using Signature = Tensor(
      const Tensor&, const Tensor&, const Tensor&, const Tensor&, const Tensor&, double, double);
  static const auto op = find<Signature>("decode_step");
  return op
      .call(phi_q_BTHK.squeeze(1),
            phi_k_BTHK.squeeze(1),
            v_BTHd.squeeze(1),
            state.s_BHKV,
            state.z_BHK,
            rule.floor,
            rule.added)
      .unsqueeze(1);
}

Tensor cache_attention_step(const CacheAttention& in) {
  using Signature = Tensor(const Tensor&,
                           const Tensor&,
                           const Tensor&,
                           const Tensor&,
                           const Tensor&,
                           const Tensor&,
                           const Tensor&,
                           double);
  static const auto op = find<Signature>("cache_attention_step");
  return op
      .call(in.q_BTHd.squeeze(1),
            in.k_BTHd.squeeze(1),
            in.v_BTHd.squeeze(1),
            in.keys_BHCd,
            in.values_BHCd,
            in.length_1,
            in.tickets,
            in.scale)
      .unsqueeze(1);
}

bool has_cache_attention(int64_t head_dim) {
  return head_dim % 8 == 0 && head_dim <= t2r::kernels::cuda::kMaxCacheHead;
}

Tensor step_linear(const StepLinear& in) {
  using Signature = Tensor(const Tensor&,
                           const Tensor&,
                           const OptionalTensor&,
                           const OptionalTensor&,
                           const OptionalTensor&,
                           double,
                           const OptionalTensor&,
                           int64_t,
                           const OptionalTensor&,
                           const OptionalTensor&,
                           const OptionalTensor&,
                           int64_t,
                           bool);
  static const auto op = find<Signature>("step_linear");
  return op.call(in.x_NI,
                 in.weight_OI,
                 optional(in.bias),
                 optional(in.norm_weight),
                 optional(in.norm_bias),
                 in.eps,
                 optional(in.residual_NO),
                 static_cast<int64_t>(in.activation),
                 optional(in.cosine_Ph),
                 optional(in.sine_Ph),
                 optional(in.position_1),
                 in.rotated,
                 in.float_output);
}

int64_t most_step_rows(int64_t inputs, int64_t norms, bool pairs) {
  static const auto op = find<int64_t(int64_t, int64_t, bool)>("most_step_rows");
  return op.call(inputs, norms, pairs);
}

void draw_token(const Tensor& logits_NV,
                const Tensor& tokens_N,
                const Tensor& history_RN,
                const Tensor& position_1,
                const SamplingOptions& options) {
  using Signature = void(
      const Tensor&, const Tensor&, const Tensor&, const Tensor&, double, int64_t, double, int64_t);
  static const auto op = find<Signature>("draw_token");
  op.call(logits_NV,
          tokens_N,
          history_RN,
          position_1,
          options.temperature,
          options.top_k,
          options.top_p,
          static_cast<int64_t>(options.stream_seed()));
}

}  // namespace t2r::model::gpu
