#include "model/ops/hedgehog_op.h"

#include <ATen/Functions.h>
#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>
#include <torch/csrc/autograd/custom_function.h>

#include <algorithm>

#include "model/kernels/cuda/pointwise/hedgehog_map.h"
#include "model/ops/causal_passes.h"
#include "model/ops/op_support.h"

namespace t2r::ops {
namespace {

using kernels::cuda::HedgehogHeads;
using kernels::cuda::HedgehogMap;
using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

void check_map(const Tensor& q, const Tensor& k, const Tensor& weight, const Tensor& bias) {
  TORCH_CHECK(q.is_cuda(), "t2r: q is on ", q.device(), ", allowed: cuda");
  TORCH_CHECK(q.scalar_type() == at::kBFloat16 || q.scalar_type() == at::kFloat ||
                  q.scalar_type() == at::kDouble,
              "t2r: q has dtype ",
              q.scalar_type(),
              ", allowed: bfloat16, float32, float64");
  TORCH_CHECK(q.dim() == 4, "t2r: q has ", q.dim(), " dimensions, allowed: 4");
  TORCH_CHECK(k.dim() == 4, "t2r: k has ", k.dim(), " dimensions, allowed: 4");
  TORCH_CHECK(weight.dim() == 3, "t2r: weight has ", weight.dim(), " dimensions, allowed: 3");
  for (const int dimension : {0, 1}) {
    TORCH_CHECK(q.size(dimension) >= 1 && q.size(dimension) < (int64_t{1} << 31),
                "t2r: q has size ",
                q.size(dimension),
                " in dimension ",
                dimension,
                ", allowed: 1 to 2^31 - 1");
  }
  check_input(k, "k", {q.size(0), q.size(1), k.size(2), q.size(3)}, q);
  const int64_t maps = weight.size(0);
  TORCH_CHECK(maps >= 1 && weight.size(1) >= 1,
              "t2r: weight has shape ",
              weight.sizes(),
              ", allowed: at least one map and row");
  check_input(weight, "weight", {maps, weight.size(1), q.size(3)}, q);
  check_input(bias, "bias", {maps, weight.size(1)}, q);
  for (const auto& [tensor, name] : {std::pair{&q, "q"}, std::pair{&k, "k"}}) {
    const int64_t heads = tensor->size(2);
    TORCH_CHECK(heads >= 1 && (heads % maps == 0 || maps % heads == 0),
                "t2r: ",
                name,
                " has ",
                heads,
                " heads for ",
                maps,
                " maps, allowed: one number a multiple of the other");
  }
}

/// Whether one kernel serves the map.
bool is_fused(const Tensor& q, const Tensor& weight) {
  const int64_t head_size = q.size(3);
  return q.scalar_type() == at::kBFloat16 &&
         (head_size == 32 || head_size == 64 || head_size == 128) &&
         weight.size(1) <= kernels::cuda::kMaxHedgehogRows;
}

Tensor new_features(const Tensor& x, const Tensor& weight) {
  return at::empty({x.size(0), x.size(1), std::max(x.size(2), weight.size(0)), 2 * weight.size(1)},
                   x.options().requires_grad(false));
}

HedgehogHeads heads_of(const Tensor& x, const Tensor& weight) {
  HedgehogHeads heads;
  heads.x = view_of(x);
  heads.x_heads = static_cast<int>(x.size(2));
  heads.heads = static_cast<int>(std::max(x.size(2), weight.size(0)));
  return heads;
}

HedgehogMap arguments(const Tensor& q, const Tensor& k, const Tensor& weight, const Tensor& bias) {
  HedgehogMap a;
  a.batch = static_cast<int>(q.size(0));
  a.length = static_cast<int>(q.size(1));
  a.maps = static_cast<int>(weight.size(0));
  a.rows = static_cast<int>(weight.size(1));
  a.head_size = static_cast<int>(weight.size(2));
  a.tensors[0] = heads_of(q, weight);
  a.tensors[1] = heads_of(k, weight);
  a.weight = pointer<void>(weight);
  a.bias = pointer<void>(bias);
  return a;
}

std::pair<Tensor, Tensor> forward_map(const Tensor& q,
                                      const Tensor& k,
                                      const Tensor& weight,
                                      const Tensor& bias) {
  const Tensor phi_q = new_features(q, weight), phi_k = new_features(k, weight);
  HedgehogMap a = arguments(q, k, weight, bias);
  a.tensors[0].phi = view_of(phi_q);
  a.tensors[1].phi = view_of(phi_k);
  a.early = current_device().hopper;
  check_launch(kernels::cuda::hedgehog_forward(a, c10::cuda::getCurrentCUDAStream()),
               "the kernel of Hedgehog's map");
  return {phi_q, phi_k};
}

struct MapGradients {
  Tensor weight, bias;
};

/// Gradients of a map's output as 16-byte loads, or with odd rows any, can read them.
Tensor readable(const Tensor& gradient, const Tensor& weight) {
  return weight.size(1) % 8 == 0 ? readable_bf16(gradient) : gradient.contiguous();
}

/// grad_q and grad_k, whose memory may be strided, have the heads of q and k.
MapGradients backward_map(const Tensor& q,
                          const Tensor& k,
                          const Tensor& weight,
                          const Tensor& bias,
                          const Tensor& grad_phi_q,
                          const Tensor& grad_phi_k,
                          const Tensor& grad_q,
                          const Tensor& grad_k) {
  HedgehogMap a = arguments(q, k, weight, bias);
  const Tensor readable_q = readable(grad_phi_q, weight), readable_k = readable(grad_phi_k, weight);
  a.tensors[0].grad_phi = view_of(readable_q);
  a.tensors[1].grad_phi = view_of(readable_k);
  // Maps that share a head of x: their gradients are added up behind the kernel.
  Tensor shares[2];
  const Tensor* const grad_x[2] = {&grad_q, &grad_k};
  for (int i = 0; i < 2; ++i) {
    const HedgehogHeads& heads = a.tensors[i];
    if (heads.heads != heads.x_heads)
      shares[i] = at::empty({a.batch, a.length, heads.heads, a.head_size}, q.options());
    a.tensors[i].grad_x = view_of(shares[i].defined() ? shares[i] : *grad_x[i]);
  }
  const int64_t parts = kernels::cuda::hedgehog_parts(a);
  const Tensor weight_parts = at::empty({parts, weight.numel()}, q.options().dtype(at::kFloat));
  const Tensor bias_parts = at::empty({parts, bias.numel()}, q.options().dtype(at::kFloat));
  const MapGradients result{at::empty_like(weight), at::empty_like(bias)};
  a.weight_parts = mutable_pointer<float>(weight_parts);
  a.bias_parts = mutable_pointer<float>(bias_parts);
  a.grad_weight = mutable_pointer<void>(result.weight);
  a.grad_bias = mutable_pointer<void>(result.bias);
  check_launch(kernels::cuda::hedgehog_backward(a, c10::cuda::getCurrentCUDAStream()),
               "the backward kernel of Hedgehog's map");
  for (int i = 0; i < 2; ++i) {
    if (shares[i].defined()) grad_x[i]->copy_(add_groups(shares[i], 2, a.tensors[i].x_heads));
  }
  return result;
}

class Features : public torch::autograd::Function<Features> {
 public:
  static variable_list forward(AutogradContext* ctx,
                               const Tensor& q,
                               const Tensor& k,
                               const Tensor& weight,
                               const Tensor& bias) {
    const c10::cuda::CUDAGuard guard(q.device());
    ctx->save_for_backward({q, k, weight, bias});
    const auto [phi_q, phi_k] = forward_map(q, k, weight, bias);
    return {phi_q, phi_k};
  }

  static variable_list backward(AutogradContext* ctx, const variable_list& gradients) {
    refuse_second_derivatives("hedgehog_features");
    const auto saved = ctx->get_saved_variables();
    const Tensor &q = saved[0], &k = saved[1], &weight = saved[2], &bias = saved[3];
    const c10::cuda::CUDAGuard guard(q.device());
    const auto given = [&](const Tensor& gradient, const Tensor& x) {
      return gradient.defined() ? gradient : new_features(x, weight).zero_();
    };
    const Tensor grad_q = at::empty(q.sizes(), q.options()),
                 grad_k = at::empty(k.sizes(), k.options());
    const MapGradients g = backward_map(
        q, k, weight, bias, given(gradients[0], q), given(gradients[1], k), grad_q, grad_k);
    return {grad_q, grad_k, g.weight, g.bias};
  }
};

/// The two softmaxes of y [.., R] in float32.
class PairOfSoftmaxes : public torch::autograd::Function<PairOfSoftmaxes> {
 public:
  static Tensor forward(AutogradContext* ctx, const Tensor& y) {
    const c10::cuda::CUDAGuard guard(y.device());
    std::vector<int64_t> sizes = y.sizes().vec();
    sizes.back() *= 2;
    const Tensor phi = at::empty(sizes, y.options());
    kernels::cuda::SoftmaxPair a = arguments(y);
    a.phi = mutable_pointer<float>(phi);
    check_launch(kernels::cuda::softmax_pair(a, c10::cuda::getCurrentCUDAStream()),
                 "the kernel of both softmaxes");
    ctx->save_for_backward({y});
    return phi;
  }

  static variable_list backward(AutogradContext* ctx, const variable_list& gradients) {
    refuse_second_derivatives("hedgehog_features");
    const Tensor y = ctx->get_saved_variables()[0], grad_phi = gradients[0].contiguous(),
                 grad_y = at::empty_like(y);
    const c10::cuda::CUDAGuard guard(y.device());
    kernels::cuda::SoftmaxPair a = arguments(y);
    a.grad_phi = pointer<float>(grad_phi);
    a.grad_y = mutable_pointer<float>(grad_y);
    check_launch(kernels::cuda::softmax_pair(a, c10::cuda::getCurrentCUDAStream()),
                 "the backward kernel of both softmaxes");
    return {grad_y};
  }

 private:
  static kernels::cuda::SoftmaxPair arguments(const Tensor& y) {
    kernels::cuda::SoftmaxPair a;
    a.width = y.size(-1);
    a.rows = y.numel() / a.width;
    a.y = pointer<float>(y);
    return a;
  }
};

/// What has no fused kernel.
Tensor features_in_parts(const Tensor& x, const Tensor& weight, const Tensor& bias) {
  if (x.scalar_type() == at::kBFloat16)
    return features_in_parts(x.to(at::kFloat), weight.to(at::kFloat), bias.to(at::kFloat))
        .to(at::kBFloat16);
  const Tensor y = map_products(x, weight, bias, 1.0);
  if (x.scalar_type() == at::kFloat) return PairOfSoftmaxes::apply(y.contiguous());
  return at::cat({at::softmax(y, -1), at::softmax(-y, -1)}, -1);
}

CausalInputs of_features(const Tensor& phi_q,
                         const Tensor& phi_k,
                         const Tensor& v,
                         const DenominatorRule& rule) {
  return {.q_BTHd = phi_q, .k_BTHd = phi_k, .v_BTHd = v, .rule = rule};
}

/// Autograd sees the tensors in front of `in`.
class CausalHedgehog : public torch::autograd::Function<CausalHedgehog> {
 public:
  static Tensor forward(AutogradContext* ctx,
                        const Tensor& qkv,
                        const Tensor& weight,
                        const Tensor& bias,
                        const FusedAttention& in,
                        bool save) {
    const c10::cuda::CUDAGuard guard(qkv.device());
    const auto [q, k, v] = qkv_parts(qkv, in.query_heads);
    const auto [phi_q, phi_k] = forward_map(q, k, weight, bias);
    const FeaturesForward result =
        causal_features_forward(of_features(phi_q, phi_k, v, in.rule), save);
    ctx->save_for_backward({qkv, weight, bias, phi_q, phi_k, result.states});
    ctx->saved_data["query_heads"] = in.query_heads;
    ctx->saved_data["floor"] = in.rule.floor;
    ctx->saved_data["added"] = in.rule.added;
    return result.o_BTHd;
  }

  static variable_list backward(AutogradContext* ctx, const variable_list& gradients) {
    refuse_second_derivatives("causal_hedgehog");
    const auto saved = ctx->get_saved_variables();
    const Tensor &qkv = saved[0], &weight = saved[1], &bias = saved[2];
    const c10::cuda::CUDAGuard guard(qkv.device());
    const int64_t query_heads = ctx->saved_data["query_heads"].toInt();
    const DenominatorRule rule{.floor = ctx->saved_data["floor"].toDouble(),
                               .added = ctx->saved_data["added"].toDouble()};
    const auto [q, k, v] = qkv_parts(qkv, query_heads);
    const Tensor grad_qkv = at::empty(qkv.sizes(), qkv.options());
    const auto [grad_q, grad_k, grad_v] = qkv_parts(grad_qkv, query_heads);
    const FeatureGradients g = causal_features_backward(
        of_features(saved[3], saved[4], v, rule), saved[5], gradients[0], grad_v);
    if (!g.v_BTHd.is_same(grad_v)) grad_v.copy_(g.v_BTHd);
    const MapGradients map =
        backward_map(q, k, weight, bias, g.phi_q_BTHK, g.phi_k_BTHK, grad_q, grad_k);
    return {grad_qkv, map.weight, map.bias, Tensor(), Tensor()};
  }
};

}  // namespace

std::tuple<Tensor, Tensor> hedgehog_features(const Tensor& q,
                                             const Tensor& k,
                                             const Tensor& weight,
                                             const Tensor& bias) {
  check_map(q, k, weight, bias);
  if (!is_fused(q, weight))
    return {features_in_parts(q, weight, bias), features_in_parts(k, weight, bias)};
  const variable_list phi = Features::apply(
      readable_bf16(q), readable_bf16(k), contiguous_and_aligned(weight), bias.contiguous());
  return {phi[0], phi[1]};
}

Tensor causal_hedgehog(const FusedAttention& in) {
  const Tensor &weight = in.weight_MKd, &bias = in.bias_MK;
  const auto [q, k, v] = qkv_parts(in.qkv_BTHd, in.query_heads);
  check_map(q, k, weight, bias);
  kernels::cuda::Shape shape;
  shape.query_heads = static_cast<int>(in.query_heads);
  shape.key_heads = shape.value_heads = static_cast<int>(k.size(2));
  shape.state_heads = static_cast<int>(weight.size(0));
  check_heads(shape, /*has_map=*/true);
  check_rule(1.0, in.rule.floor, in.rule.added);
  const c10::cuda::CUDAGuard guard(in.qkv_BTHd.device());  // whose kernels are chosen
  if (is_fused(q, weight) && has_features_passes(2 * weight.size(1), q.size(3))) {
    const bool save = needs_gradient(
        {.q_BTHd = q, .k_BTHd = k, .v_BTHd = v, .weight_MKd = weight, .bias_MK = bias});
    return CausalHedgehog::apply(
        readable_bf16(in.qkv_BTHd), contiguous_and_aligned(weight), bias.contiguous(), in, save);
  }
  const auto [phi_q, phi_k] = hedgehog_features(q, k, weight, bias);
  return causal(of_features(phi_q, phi_k, v, in.rule)).o_BTHd;
}

}  // namespace t2r::ops
