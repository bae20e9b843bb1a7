#include "model/ops/causal_op.h"

#include <ATen/Functions.h>
#include <c10/cuda/CUDAGuard.h>
#include <torch/csrc/autograd/custom_function.h>

#include "model/ops/causal_passes.h"
#include "model/ops/op_support.h"

namespace t2r::ops {
namespace {

using kernels::cuda::Shape;
using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

void save_rule(AutogradContext* ctx, double scale, const DenominatorRule& rule) {
  ctx->saved_data["scale"] = scale;
  ctx->saved_data["floor"] = rule.floor;
  ctx->saved_data["added"] = rule.added;
}
DenominatorRule saved_rule(AutogradContext* ctx) {
  return {.floor = ctx->saved_data["floor"].toDouble(),
          .added = ctx->saved_data["added"].toDouble()};
}

/// Autograd sees the tensors in front of `in`, which has them too; gradients are in their order.
class Causal : public torch::autograd::Function<Causal> {
 public:
  static variable_list forward(AutogradContext* ctx,
                               const Tensor& /*q*/,
                               const Tensor& /*k*/,
                               const Tensor& /*v*/,
                               const OptionalTensor& /*weight*/,
                               const OptionalTensor& /*bias*/,
                               const OptionalTensor& /*initial_s*/,
                               const OptionalTensor& /*initial_z*/,
                               const CausalInputs& in,
                               bool want_state,
                               bool save) {
    const c10::cuda::CUDAGuard guard(in.q_BTHd.device());
    const CausalProblem p(in);
    const CausalResult result = causal_forward(p, save, want_state);
    ctx->save_for_backward({in.q_BTHd,
                            in.k_BTHd,
                            in.v_BTHd,
                            in.weight_MKd,
                            in.bias_MK,
                            in.document_start_BT,
                            in.initial_s_BMKd,
                            in.initial_z_BMK,
                            result.states});
    save_rule(ctx, in.scale, in.rule);
    if (!want_state) return {result.o};
    return {result.o, result.s, result.z};
  }

  static variable_list backward(AutogradContext* ctx, const variable_list& gradients) {
    refuse_second_derivatives("causal");
    const auto saved = ctx->get_saved_variables();
    const c10::cuda::CUDAGuard guard(saved[0].device());
    const CausalProblem p({.q_BTHd = saved[0],
                           .k_BTHd = saved[1],
                           .v_BTHd = saved[2],
                           .weight_MKd = saved[3],
                           .bias_MK = saved[4],
                           .document_start_BT = saved[5],
                           .initial_s_BMKd = saved[6],
                           .initial_z_BMK = saved[7],
                           .scale = ctx->saved_data["scale"].toDouble(),
                           .rule = saved_rule(ctx)});
    const CausalGradients g = causal_backward(p, saved[8], readable(gradients, p));
    const Shape& shape = p.shape;
    return {g.q,
            add_groups(g.k, 2, shape.key_heads),
            add_groups(g.v, 2, shape.value_heads),
            g.weight,
            g.bias,
            add_groups(g.initial_s, 1, shape.state_heads),
            add_groups(g.initial_z, 1, shape.state_heads),
            Tensor(),
            Tensor(),
            Tensor()};
  }

 private:
  /// Gradients of the outputs as the kernels read them; zeros where one is missing, but those of
  /// the state, when both are.
  static CausalOutputs readable(const variable_list& gradients, const CausalProblem& p) {
    CausalOutputs grad;
    grad.o_BTHd = gradients[0].defined()
                      ? (p.tensor_cores() ? readable_bf16(gradients[0]) : gradients[0].contiguous())
                      : at::zeros(p.output_sizes(), p.in.v_BTHd.options());
    if (gradients.size() == 3 && (gradients[1].defined() || gradients[2].defined())) {
      grad.s_BHKd = gradients[1].defined()
                        ? gradients[1].contiguous()
                        : at::zeros(p.state_sizes(p.shape.state_heads), p.state_options());
      grad.z_BHK = gradients[2].defined()
                       ? gradients[2].contiguous()
                       : at::zeros({p.shape.batch, p.shape.state_heads, p.shape.feature_size},
                                   p.state_options());
    }
    return grad;
  }
};

CausalInputs parts_of(const FusedAttention& in) {
  const auto [q, k, v] = qkv_parts(in.qkv_BTHd, in.query_heads);
  return {.q_BTHd = q,
          .k_BTHd = k,
          .v_BTHd = v,
          .weight_MKd = in.weight_MKd,
          .bias_MK = in.bias_MK,
          .scale = in.scale,
          .rule = in.rule};
}

/// The same in bfloat16 on a fused projection. Autograd sees the tensors in front of `in`.
class CausalQkv : public torch::autograd::Function<CausalQkv> {
 public:
  static Tensor forward(AutogradContext* ctx,
                        const Tensor& /*qkv*/,
                        const Tensor& /*weight*/,
                        const Tensor& /*bias*/,
                        const FusedAttention& in,
                        bool save) {
    const c10::cuda::CUDAGuard guard(in.qkv_BTHd.device());
    const CausalResult result =
        causal_forward(CausalProblem(parts_of(in)), save, /*want_state=*/false);
    ctx->save_for_backward({in.qkv_BTHd, in.weight_MKd, in.bias_MK, result.states});
    ctx->saved_data["query_heads"] = in.query_heads;
    save_rule(ctx, in.scale, in.rule);
    return result.o;
  }

  static variable_list backward(AutogradContext* ctx, const variable_list& gradients) {
    refuse_second_derivatives("causal_qkv");
    const auto saved = ctx->get_saved_variables();
    const FusedAttention in{.qkv_BTHd = saved[0],
                            .query_heads = ctx->saved_data["query_heads"].toInt(),
                            .weight_MKd = saved[1],
                            .bias_MK = saved[2],
                            .scale = ctx->saved_data["scale"].toDouble(),
                            .rule = saved_rule(ctx)};
    const c10::cuda::CUDAGuard guard(in.qkv_BTHd.device());
    const CausalProblem p(parts_of(in));
    const Tensor grad_qkv = at::empty(in.qkv_BTHd.sizes(), in.qkv_BTHd.options());
    const auto [grad_q, grad_k, grad_v] = qkv_parts(grad_qkv, in.query_heads);
    const bool grouped = p.shape.key_heads != p.shape.query_heads;
    CausalGradients g;
    g.q = grad_q;
    if (!grouped) {
      g.k = grad_k;
      g.v = grad_v;
    }
    g = causal_backward(
        p, saved[3], {.o_BTHd = readable_bf16(gradients[0]), .s_BHKd = {}, .z_BHK = {}}, g);
    if (grouped) {
      grad_k.copy_(add_groups(g.k, 2, p.shape.key_heads));
      grad_v.copy_(add_groups(g.v, 2, p.shape.value_heads));
    }
    return {grad_qkv, g.weight, g.bias, Tensor(), Tensor()};
  }
};

CausalOutputs run(CausalInputs in, bool want_state) {
  const bool save = needs_gradient(in);
  in.weight_MKd = contiguous_and_aligned(in.weight_MKd);
  for (Tensor* tensor : {&in.bias_MK, &in.document_start_BT, &in.initial_s_BMKd, &in.initial_z_BMK})
    *tensor = contiguous(*tensor);
  const variable_list out = Causal::apply(in.q_BTHd,
                                          in.k_BTHd,
                                          in.v_BTHd,
                                          optional(in.weight_MKd),
                                          optional(in.bias_MK),
                                          optional(in.initial_s_BMKd),
                                          optional(in.initial_z_BMK),
                                          in,
                                          want_state,
                                          save);
  return want_state ? CausalOutputs{out[0], out[1], out[2]} : CausalOutputs{out[0], {}, {}};
}

CausalOutputs causal_any(CausalInputs in, bool want_state);

/// Given features in bfloat16 whose number is no multiple of 8 (16 bytes), with zeros behind them.
CausalOutputs causal_padded(CausalInputs in, bool want_state) {
  const int64_t features = in.q_BTHd.size(3), missing = (features + 7) / 8 * 8 - features;
  in.q_BTHd = at::constant_pad_nd(in.q_BTHd, {0, missing});
  in.k_BTHd = at::constant_pad_nd(in.k_BTHd, {0, missing});
  if (in.initial_s_BMKd.defined()) {
    in.initial_s_BMKd = at::constant_pad_nd(in.initial_s_BMKd, {0, 0, 0, missing});
    in.initial_z_BMK = at::constant_pad_nd(in.initial_z_BMK, {0, missing});
  }
  CausalOutputs out = causal_any(in, want_state);
  if (want_state) {
    out.s_BHKd = out.s_BHKd.slice(2, 0, features)
                     .contiguous();  // as every state is, and decode_step asks for
    out.z_BHK = out.z_BHK.slice(2, 0, features).contiguous();
  }
  return out;
}

/// As check_bf16_strides(), of all three.
void check_strides(const CausalInputs& in) {
  check_bf16_strides(in.q_BTHd, "q");
  check_bf16_strides(in.k_BTHd, "k");
  check_bf16_strides(in.v_BTHd, "v");
}

/// The same without a map: features by tensor operations.
CausalInputs with_features(CausalInputs in) {
  const Tensor weight = in.weight_MKd, bias = in.bias_MK;
  in.weight_MKd = in.bias_MK = Tensor();
  in.q_BTHd = map_features(in.q_BTHd, weight, bias, in.scale);
  in.k_BTHd = map_features(in.k_BTHd, weight, bias, 1.0);
  return in;
}

CausalOutputs causal_any(CausalInputs in, bool want_state) {
  const Shape shape = check_causal(in);
  const c10::cuda::CUDAGuard guard(in.q_BTHd.device());  // whose kernels are chosen
  const bool has_map = in.weight_MKd.defined();
  const auto type = in.q_BTHd.scalar_type();
  if (type == at::kBFloat16) {
    if (!has_map && shape.feature_size % 8 != 0) {
      check_bf16_strides(in.v_BTHd, "v");
      return causal_padded(in, want_state);
    }
    check_strides(in);
    if (has_causal_kernel(shape, has_map)) return run(in, want_state);
    // Without the map it may fit into this device's shared memory.
    if (has_map && has_causal_kernel(shape, false))
      return causal_any(with_features(in), want_state);
    // Too large for the tensor-core kernels or this device: the float32 ones, one rounding at the
    // end.
    for (Tensor* tensor : {&in.q_BTHd, &in.k_BTHd, &in.v_BTHd}) *tensor = tensor->to(at::kFloat);
    if (has_map)
      in.weight_MKd = in.weight_MKd.to(at::kFloat), in.bias_MK = in.bias_MK.to(at::kFloat);
    CausalOutputs out = causal_any(in, want_state);
    out.o_BTHd = out.o_BTHd.to(type);
    return out;
  }
  if (has_map) in = with_features(in);
  for (Tensor* tensor : {&in.q_BTHd, &in.k_BTHd, &in.v_BTHd}) {
    if (tensor->stride(3) != 1) *tensor = tensor->contiguous();
  }
  return run(in, want_state);
}

}  // namespace

CausalOutputs causal(const CausalInputs& inputs, bool want_state) {
  return causal_any(inputs, want_state);
}

Tensor causal_qkv(const FusedAttention& fused) {
  const CausalInputs inputs = parts_of(fused);
  const Shape shape = check_causal(inputs);
  const c10::cuda::CUDAGuard guard(fused.qkv_BTHd.device());
  // The kernels for float32 take given features: the general operator makes them.
  if (fused.qkv_BTHd.scalar_type() != at::kBFloat16 || !has_causal_kernel(shape, /*has_map=*/true))
    return causal_any(inputs, false).o_BTHd;
  check_strides(inputs);
  FusedAttention in = fused;
  in.weight_MKd = contiguous_and_aligned(in.weight_MKd);
  in.bias_MK = in.bias_MK.contiguous();
  return CausalQkv::apply(in.qkv_BTHd, in.weight_MKd, in.bias_MK, in, needs_gradient(inputs));
}

}  // namespace t2r::ops
