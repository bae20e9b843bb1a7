#include <torch/library.h>

#include "model/ops/cache_attention_op.h"
#include "model/ops/causal_op.h"
#include "model/ops/cross_op.h"
#include "model/ops/decode_op.h"
#include "model/ops/draw_token_op.h"
#include "model/ops/embedding_op.h"
#include "model/ops/hedgehog_op.h"
#include "model/ops/linear_op.h"
#include "model/ops/loss_op.h"
#include "model/ops/mlp_op.h"
#include "model/ops/norm_op.h"
#include "model/ops/optimizer_op.h"
#include "model/ops/pointwise_op.h"
#include "model/ops/step_linear_op.h"

// The operators for Python, as torch.ops.t2r.NAME: a schema each, and the way from its arguments to
// the operator's struct. The program itself calls the operators' functions (operators.h).

namespace t2r::ops {
namespace {

using OptionalTensor = std::optional<Tensor>;

Tensor or_undefined(const OptionalTensor& tensor) {
  return tensor.value_or(Tensor());
}

using WithState = std::tuple<Tensor, Tensor, Tensor>;

Tensor causal_alone(const Tensor& q,
                    const Tensor& k,
                    const Tensor& v,
                    const Tensor& weight,
                    const Tensor& bias,
                    double scale,
                    double floor,
                    double added,
                    const OptionalTensor& document_start) {
  return causal({.q_BTHd = q,
                 .k_BTHd = k,
                 .v_BTHd = v,
                 .weight_MKd = weight,
                 .bias_MK = bias,
                 .document_start_BT = or_undefined(document_start),
                 .scale = scale,
                 .rule = {.floor = floor, .added = added}},
                /*want_state=*/false)
      .o_BTHd;
}

WithState causal_with_state(const Tensor& q,
                            const Tensor& k,
                            const Tensor& v,
                            const Tensor& weight,
                            const Tensor& bias,
                            const OptionalTensor& initial_s,
                            const OptionalTensor& initial_z,
                            double scale,
                            double floor,
                            double added,
                            const OptionalTensor& document_start) {
  const CausalOutputs out = causal({.q_BTHd = q,
                                    .k_BTHd = k,
                                    .v_BTHd = v,
                                    .weight_MKd = weight,
                                    .bias_MK = bias,
                                    .document_start_BT = or_undefined(document_start),
                                    .initial_s_BMKd = or_undefined(initial_s),
                                    .initial_z_BMK = or_undefined(initial_z),
                                    .scale = scale,
                                    .rule = {.floor = floor, .added = added}});
  return {out.o_BTHd, out.s_BHKd, out.z_BHK};
}

WithState causal_features(const Tensor& phi_q,
                          const Tensor& phi_k,
                          const Tensor& v,
                          const OptionalTensor& initial_s,
                          const OptionalTensor& initial_z,
                          double floor,
                          double added,
                          const OptionalTensor& document_start) {
  const CausalOutputs out = causal({.q_BTHd = phi_q,
                                    .k_BTHd = phi_k,
                                    .v_BTHd = v,
                                    .document_start_BT = or_undefined(document_start),
                                    .initial_s_BMKd = or_undefined(initial_s),
                                    .initial_z_BMK = or_undefined(initial_z),
                                    .rule = {.floor = floor, .added = added}});
  return {out.o_BTHd, out.s_BHKd, out.z_BHK};
}

Tensor fused(const Tensor& qkv,
             const Tensor& weight,
             const Tensor& bias,
             int64_t query_heads,
             double scale,
             double floor,
             double added) {
  return causal_qkv({.qkv_BTHd = qkv,
                     .query_heads = query_heads,
                     .weight_MKd = weight,
                     .bias_MK = bias,
                     .scale = scale,
                     .rule = {.floor = floor, .added = added}});
}

Tensor fused_hedgehog(const Tensor& qkv,
                      const Tensor& weight,
                      const Tensor& bias,
                      int64_t query_heads,
                      double floor,
                      double added) {
  return causal_hedgehog({.qkv_BTHd = qkv,
                          .query_heads = query_heads,
                          .weight_MKd = weight,
                          .bias_MK = bias,
                          .rule = {.floor = floor, .added = added}});
}

Tensor cross_mapped(const Tensor& q,
                    const Tensor& k,
                    const Tensor& v,
                    const Tensor& weight,
                    const Tensor& bias,
                    const OptionalTensor& source_mask,
                    double scale,
                    double floor,
                    double added,
                    bool absolute) {
  return cross({.q_BTHd = q,
                .k_BSHd = k,
                .v_BSHd = v,
                .weight_MKd = weight,
                .bias_MK = bias,
                .source_mask_BS = or_undefined(source_mask),
                .scale = scale,
                .rule = {.floor = floor, .added = added},
                .absolute = absolute});
}

Tensor cross_features(const Tensor& phi_q,
                      const Tensor& phi_k,
                      const Tensor& v,
                      const OptionalTensor& source_mask,
                      double floor,
                      double added,
                      bool absolute) {
  return cross({.q_BTHd = phi_q,
                .k_BSHd = phi_k,
                .v_BSHd = v,
                .source_mask_BS = or_undefined(source_mask),
                .rule = {.floor = floor, .added = added},
                .absolute = absolute});
}

Tensor decode_features(const Tensor& phi_q,
                       const Tensor& phi_k,
                       const Tensor& v,
                       const Tensor& s,
                       const Tensor& z,
                       double floor,
                       double added) {
  return decode_step({.q_BHd = phi_q,
                      .k_BHd = phi_k,
                      .v_BHd = v,
                      .weight_MKd = {},
                      .bias_MK = {},
                      .s_BHKd = s,
                      .z_BHK = z,
                      .rule = {.floor = floor, .added = added}});
}

Tensor decode_mapped(const Tensor& q,
                     const Tensor& k,
                     const Tensor& v,
                     const Tensor& weight,
                     const Tensor& bias,
                     const Tensor& s,
                     const Tensor& z,
                     double scale,
                     double floor,
                     double added) {
  return decode_step({.q_BHd = q,
                      .k_BHd = k,
                      .v_BHd = v,
                      .weight_MKd = weight,
                      .bias_MK = bias,
                      .s_BHKd = s,
                      .z_BHK = z,
                      .scale = scale,
                      .rule = {.floor = floor, .added = added}});
}

Tensor over_cache(const Tensor& q,
                  const Tensor& k,
                  const Tensor& v,
                  const Tensor& keys,
                  const Tensor& values,
                  const Tensor& length,
                  const Tensor& tickets,
                  double scale) {
  return cache_attention_step({.q_BHd = q,
                               .k_BHd = k,
                               .v_BHd = v,
                               .keys_BHCd = keys,
                               .values_BHCd = values,
                               .length_1 = length,
                               .tickets = tickets,
                               .scale = scale});
}

Tensor step_projection(const Tensor& x,
                       const Tensor& weight,
                       const OptionalTensor& bias,
                       const OptionalTensor& norm_weight,
                       const OptionalTensor& norm_bias,
                       double eps,
                       const OptionalTensor& residual,
                       int64_t activation,
                       const OptionalTensor& cosine,
                       const OptionalTensor& sine,
                       const OptionalTensor& position,
                       int64_t rotated,
                       bool float_output) {
  TORCH_CHECK(activation >= 0 && activation <= 2,
              "t2r: step_linear: activation is ",
              activation,
              ", allowed: 0 none, 1 gelu, 2 swiglu");
  return step_linear({.x_NI = x,
                      .weight_OI = weight,
                      .bias = or_undefined(bias),
                      .norm_weight = or_undefined(norm_weight),
                      .norm_bias = or_undefined(norm_bias),
                      .eps = eps,
                      .residual_NO = or_undefined(residual),
                      .activation = static_cast<StepLinearInputs::Activation>(activation),
                      .cosine_Ph = or_undefined(cosine),
                      .sine_Ph = or_undefined(sine),
                      .position_1 = or_undefined(position),
                      .rotated = rotated,
                      .float_output = float_output});
}

void draw(const Tensor& logits,
          const Tensor& tokens,
          const Tensor& history,
          const Tensor& position,
          double temperature,
          int64_t top_k,
          double top_p,
          int64_t seed) {
  draw_token({.logits_NV = logits,
              .tokens_N = tokens,
              .history_RN = history,
              .position_1 = position,
              .temperature = temperature,
              .top_k = top_k,
              .top_p = top_p,
              .seed = static_cast<uint64_t>(seed)});
}

Tensor projection(const Tensor& x,
                  const Tensor& weight,
                  const OptionalTensor& bias,
                  bool input_major) {
  return linear(x, {.weight = weight, .bias = bias, .input_major = input_major});
}

Tensor mlp(const Tensor& x,
           const Tensor& w1,
           const Tensor& b1,
           const Tensor& w2,
           const Tensor& b2,
           bool input_major) {
  return mlp_gelu(x,
                  {.weight = w1, .bias = b1, .input_major = input_major},
                  {.weight = w2, .bias = b2, .input_major = input_major});
}

Tensor distillation(const Tensor& x,
                    const Tensor& weight,
                    const Tensor& targets,
                    const Tensor& teacher_x,
                    const Tensor& teacher_weight,
                    double share,
                    int64_t chunk_rows) {
  return linear_distillation_sum(x,
                                 weight,
                                 targets,
                                 {.x_NE = teacher_x, .weight_VE = teacher_weight, .share = share},
                                 chunk_rows);
}

void norm_of_gradients(const Tensor& gradients, const Tensor& control, double beta1, double beta2) {
  gradient_norm(gradients, control, beta1, beta2);
}

void adamw_in_place(const Tensor& master,
                    const OptionalTensor& values,
                    const Tensor& gradients,
                    const Tensor& first_moment,
                    const Tensor& second_moment,
                    const Tensor& spans,
                    const Tensor& control,
                    double beta1,
                    double beta2,
                    double eps,
                    double weight_decay) {
  adamw({master, values, gradients, first_moment, second_moment, spans, control},
        {.beta1 = beta1, .beta2 = beta2, .eps = eps, .weight_decay = weight_decay});
}

}  // namespace

TORCH_LIBRARY(t2r, library) {
  library.def(
      "causal(Tensor q, Tensor k, Tensor v, Tensor weight, Tensor bias, *, float scale=1.0, float "
      "floor=0.01, float added=0.0, Tensor? document_start=None) -> Tensor");
  library.def(
      "causal_qkv(Tensor qkv, Tensor weight, Tensor bias, int query_heads, *, float scale=1.0, "
      "float floor=0.01, float added=0.0) -> Tensor");
  library.def(
      "causal_with_state(Tensor q, Tensor k, Tensor v, Tensor weight, Tensor bias, Tensor? "
      "initial_s=None, Tensor? initial_z=None, *, float scale=1.0, float floor=0.01, float "
      "added=0.0, Tensor? document_start=None) -> (Tensor, Tensor, Tensor)");
  library.def(
      "causal_features(Tensor phi_q, Tensor phi_k, Tensor v, Tensor? initial_s=None, Tensor? "
      "initial_z=None, *, float floor=0.01, float added=0.0, Tensor? document_start=None) -> "
      "(Tensor, Tensor, Tensor)");
  library.def(
      "hedgehog_features(Tensor q, Tensor k, Tensor weight, Tensor bias) -> (Tensor, Tensor)");
  library.def(
      "causal_hedgehog(Tensor qkv, Tensor weight, Tensor bias, int query_heads, *, float "
      "floor=0.0, float added=1e-6) -> Tensor");
  library.def(
      "cross(Tensor q, Tensor k, Tensor v, Tensor weight, Tensor bias, *, Tensor? "
      "source_mask=None, float scale=1.0, float floor=0.01, float added=0.0, bool absolute=True) "
      "-> Tensor");
  library.def(
      "cross_features(Tensor phi_q, Tensor phi_k, Tensor v, *, Tensor? source_mask=None, float "
      "floor=0.01, float added=0.0, bool absolute=True) -> Tensor");
  library.def(
      "decode_step(Tensor phi_q, Tensor phi_k, Tensor v, Tensor(a!) s, Tensor(b!) z, *, float "
      "floor=0.01, float added=0.0) -> Tensor");
  library.def(
      "decode_step_map(Tensor q, Tensor k, Tensor v, Tensor weight, Tensor bias, Tensor(a!) s, "
      "Tensor(b!) z, *, float scale=1.0, float floor=0.01, float added=0.0) -> Tensor");
  library.def(
      "cache_attention_step(Tensor q, Tensor k, Tensor v, Tensor(a!) keys, Tensor(b!) values, "
      "Tensor length, Tensor(c!) tickets, *, float scale=1.0) -> Tensor");
  library.def(
      "step_linear(Tensor x, Tensor weight, Tensor? bias=None, *, Tensor? norm_weight=None, "
      "Tensor? norm_bias=None, float eps=0.0, Tensor? residual=None, int activation=0, Tensor? "
      "cosine=None, Tensor? sine=None, Tensor? position=None, int rotated=0, bool "
      "float_output=False) -> Tensor");
  library.def("most_step_rows(int inputs, int norms, bool pairs) -> int");
  library.def(
      "draw_token(Tensor logits, Tensor(a!) tokens, Tensor(b!) history, Tensor position, *, float "
      "temperature=0.0, int top_k=0, float top_p=1.0, int seed=0) -> ()");
  library.def(
      "add_norm(Tensor x, Tensor? delta, Tensor weight, Tensor? bias, float eps) -> (Tensor, "
      "Tensor)");
  library.def("norm(Tensor x, Tensor weight, Tensor? bias, float eps) -> Tensor");
  library.def("swiglu(Tensor gate_up) -> Tensor");
  library.def("rotate_heads(Tensor x, int num_heads, Tensor cosine, Tensor sine) -> Tensor");
  library.def("linear(Tensor x, Tensor weight, Tensor? bias, bool input_major) -> Tensor");
  library.def(
      "mlp_gelu(Tensor x, Tensor w1, Tensor b1, Tensor w2, Tensor b2, bool input_major) -> Tensor");
  library.def("embedding(Tensor weight, Tensor tokens, Tensor? position=None) -> Tensor");
  library.def(
      "linear_cross_entropy_sum(Tensor x, Tensor weight, Tensor targets, *, int chunk_rows=0) -> "
      "Tensor");
  library.def(
      "linear_cross_entropy_values(Tensor x, Tensor weight, Tensor targets, *, int chunk_rows=0) "
      "-> Tensor");
  library.def(
      "linear_distillation_sum(Tensor x, Tensor weight, Tensor targets, Tensor teacher_x, Tensor "
      "teacher_weight, float share, *, int chunk_rows=0) -> Tensor");
  library.def(
      "gradient_norm(Tensor gradients, Tensor(a!) control, float beta1, float beta2) -> ()");
  library.def(
      "adamw_(Tensor(a!) master, Tensor(b!)? values, Tensor gradients, Tensor(c!) first_moment, "
      "Tensor(d!) second_moment, Tensor spans, Tensor control, float beta1, float beta2, float "
      "eps, float weight_decay) -> ()");
}

// Functions of differentiable functions.
TORCH_LIBRARY_IMPL(t2r, CompositeImplicitAutograd, library) {
  library.impl("causal", causal_alone);
  library.impl("causal_qkv", fused);
  library.impl("causal_with_state", causal_with_state);
  library.impl("causal_features", causal_features);
  library.impl("hedgehog_features", hedgehog_features);
  library.impl("causal_hedgehog", fused_hedgehog);
  library.impl("cross", cross_mapped);
  library.impl("cross_features", cross_features);
  library.impl("add_norm", add_norm);
  library.impl("norm", norm);
  library.impl("swiglu", swiglu);
  library.impl("rotate_heads", rotate_heads);
  library.impl("linear", projection);
  library.impl("mlp_gelu", mlp);
  library.impl("embedding", embedding);
  library.impl("linear_cross_entropy_sum", linear_cross_entropy_sum);
  library.impl("linear_cross_entropy_values", linear_cross_entropy_values);
  library.impl("linear_distillation_sum", distillation);
}

// Explicit: there is no gradient formula, and autograd says so when somebody asks for one.
TORCH_LIBRARY_IMPL(t2r, CompositeExplicitAutograd, library) {
  library.impl("decode_step", decode_features);
  library.impl("decode_step_map", decode_mapped);
  library.impl("cache_attention_step", over_cache);
  library.impl("step_linear", step_projection);
  library.impl("most_step_rows", most_step_rows);
  library.impl("draw_token", draw);
  library.impl("gradient_norm", norm_of_gradients);
  library.impl("adamw_", adamw_in_place);
}

}  // namespace t2r::ops
