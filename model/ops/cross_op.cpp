#include "model/ops/cross_op.h"

#include <ATen/Functions.h>
#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>
#include <torch/csrc/autograd/custom_function.h>

#include "model/kernels/cuda/cross/cross_simt.h"
#include "model/ops/causal_inputs.h"
#include "model/ops/cross_inputs.h"
#include "model/ops/op_support.h"

namespace t2r::ops {
namespace {

using kernels::cuda::CrossArguments;
using kernels::cuda::CrossSimtArguments;
using kernels::cuda::Cut;
using kernels::cuda::Shape;
using kernels::cuda::View;
using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

/// Inputs that the kernels take as they are, and their shape.
struct Problem {
  explicit Problem(const CrossInputs& inputs) : in(inputs), shape(check_cross(inputs)) {}

  CrossInputs in;
  Shape shape;

  int source_length() const { return static_cast<int>(in.k_BSHd.size(1)); }
  int64_t states() const { return int64_t{shape.batch} * shape.state_heads; }
  int64_t items() const { return int64_t{shape.batch} * shape.query_heads; }
  at::TensorOptions state_options() const {
    return in.q_BTHd.options().dtype(in.q_BTHd.scalar_type() == at::kDouble ? at::kDouble
                                                                            : at::kFloat);
  }
};

struct ForwardResult {
  Tensor o, state;
};

struct Gradients {
  Tensor q, k, v, weight, bias;
};

Tensor new_output(const Problem& p) {
  return at::empty({p.shape.batch, p.shape.length, p.shape.query_heads, p.shape.head_size},
                   p.in.v_BSHd.options());
}

/// Gradients of k and v still have a head for every state.
Gradients new_gradients(const Problem& p) {
  const auto empty = [&](int64_t length, int64_t heads, int64_t columns) {
    return at::empty({p.shape.batch, length, heads, columns}, p.in.q_BTHd.options());
  };
  return {.q = empty(p.shape.length, p.shape.query_heads, p.in.q_BTHd.size(3)),
          .k = empty(p.source_length(), p.shape.state_heads, p.in.k_BSHd.size(3)),
          .v = empty(p.source_length(), p.shape.state_heads, p.in.v_BSHd.size(3)),
          .weight = {},
          .bias = {}};
}

CrossArguments common_arguments(const Problem& p, bool backward) {
  CrossArguments a;
  a.shape = p.shape;
  a.source_length = p.source_length();
  a.rule = {static_cast<float>(p.in.scale),
            static_cast<float>(p.in.rule.floor),
            static_cast<float>(p.in.rule.added)};
  a.absolute = p.in.absolute;
  a.plan = kernels::cuda::plan_cross(
      p.shape, a.source_length, p.in.weight_MKd.defined(), backward, current_device());
  a.q = view_of(p.in.q_BTHd);
  a.k = view_of(p.in.k_BSHd);
  a.v = view_of(p.in.v_BSHd);
  a.weight = pointer<void>(p.in.weight_MKd);
  a.bias = pointer<void>(p.in.bias_MK);
  a.source_mask = pointer<unsigned char>(p.in.source_mask_BS);
  return a;
}

ForwardResult forward_bf16(const Problem& p) {
  CrossArguments a = common_arguments(p, false);
  ForwardResult result{new_output(p), {}};
  if (!a.plan.whole ||
      !kernels::cuda::plan_cross(
           p.shape, a.source_length, p.in.weight_MKd.defined(), true, current_device())
           .sums_again) {
    result.state =
        at::empty({p.states() * a.plan.record_bytes}, p.in.q_BTHd.options().dtype(at::kByte));
  }
  Tensor sums;
  if (!a.plan.whole)
    sums = at::empty({p.states() * a.plan.source.segments * a.plan.sums_floats}, p.state_options());
  a.o = view_of(result.o);
  a.state = mutable_pointer<unsigned char>(result.state);
  a.sums = mutable_pointer<float>(sums);
  check_launch(kernels::cuda::cross_forward_bf16(a, c10::cuda::getCurrentCUDAStream()),
               "the forward kernels");
  return result;
}

Gradients backward_bf16(const Problem& p, const Tensor& state, const Tensor& grad_o) {
  CrossArguments a = common_arguments(p, true);
  Gradients g = new_gradients(p);
  const auto floats = [&](int64_t parts) {
    return at::empty({parts * a.plan.sums_floats}, p.state_options());
  };
  Tensor grad_state, sums, query_parts, source_parts;
  if (!a.plan.whole) {
    grad_state = at::empty_like(state);
    sums = floats(p.states() * a.plan.queries.segments);
  }
  if (p.in.weight_MKd.defined()) {
    g.weight = at::empty_like(p.in.weight_MKd);
    g.bias = at::empty_like(p.in.bias_MK);
    const int64_t slots = int64_t{a.plan.groups} * p.shape.state_heads;
    query_parts = floats(slots * a.plan.queries.segments);
    if (!a.plan.whole) source_parts = floats(slots * a.plan.source.segments);
  }
  a.grad_o = view_of(grad_o);
  a.grad_q = view_of(g.q);
  a.grad_k = view_of(g.k);
  a.grad_v = view_of(g.v);
  a.state = mutable_pointer<unsigned char>(state);
  a.grad_state = mutable_pointer<unsigned char>(grad_state);
  a.sums = mutable_pointer<float>(sums);
  a.query_parts = mutable_pointer<float>(query_parts);
  a.source_parts = mutable_pointer<float>(source_parts);
  a.grad_weight = mutable_pointer<void>(g.weight);
  a.grad_bias = mutable_pointer<void>(g.bias);
  check_launch(kernels::cuda::cross_backward_bf16(a, c10::cuda::getCurrentCUDAStream()),
               "the backward kernels");
  return g;
}

template <class Scalar>
CrossSimtArguments<Scalar> simt_arguments(const Problem& p) {
  CrossSimtArguments<Scalar> a;
  const int multiprocessors = current_device().multiprocessors;
  a.shape = p.shape;
  a.source_length = p.source_length();
  a.floor = p.in.rule.floor;
  a.added = p.in.rule.added;
  a.absolute = p.in.absolute;
  a.queries = kernels::cuda::cut_tokens(
      p.shape.length, kernels::cuda::kCrossSimtChunk, static_cast<int>(p.items()), multiprocessors);
  a.source = kernels::cuda::cut_tokens(a.source_length,
                                       kernels::cuda::kCrossSimtChunk,
                                       static_cast<int>(p.states()),
                                       multiprocessors);
  a.q = view_of(p.in.q_BTHd);
  a.k = view_of(p.in.k_BSHd);
  a.v = view_of(p.in.v_BSHd);
  a.source_mask = pointer<unsigned char>(p.in.source_mask_BS);
  return a;
}

int64_t state_size(const Problem& p) {
  return int64_t{p.shape.feature_size} * (p.shape.head_size + 1);
}

template <class Scalar>
ForwardResult forward_simt(const Problem& p) {
  require_shared_memory(kernels::cuda::cross_simt_bytes(p.shape, /*backward=*/true, sizeof(Scalar)),
                        "cross");
  auto a = simt_arguments<Scalar>(p);
  const ForwardResult result{new_output(p),
                             at::empty({p.states() * state_size(p)}, p.state_options())};
  const Tensor sums =
      at::empty({p.states() * a.source.segments * state_size(p)}, p.state_options());
  a.o = view_of(result.o);
  a.state = mutable_pointer<Scalar>(result.state);
  a.sums = mutable_pointer<Scalar>(sums);
  check_launch(kernels::cuda::cross_forward_simt(a, c10::cuda::getCurrentCUDAStream()),
               "the forward kernels");
  return result;
}

template <class Scalar>
Gradients backward_simt(const Problem& p, const Tensor& state, const Tensor& grad_o) {
  auto a = simt_arguments<Scalar>(p);
  const Gradients g = new_gradients(p);
  const Tensor grad_state = at::empty_like(state);
  const Tensor sums =
      at::empty({p.items() * a.queries.segments * state_size(p)}, p.state_options());
  a.grad_o = view_of(grad_o);
  a.grad_q = view_of(g.q);
  a.grad_k = view_of(g.k);
  a.grad_v = view_of(g.v);
  a.state = mutable_pointer<Scalar>(state);
  a.grad_state = mutable_pointer<Scalar>(grad_state);
  a.sums = mutable_pointer<Scalar>(sums);
  check_launch(kernels::cuda::cross_backward_simt(a, c10::cuda::getCurrentCUDAStream()),
               "the backward kernels");
  return g;
}

ForwardResult forward_any(const Problem& p) {
  if (p.in.q_BTHd.scalar_type() == at::kBFloat16) return forward_bf16(p);
  return p.in.q_BTHd.scalar_type() == at::kDouble ? forward_simt<double>(p)
                                                  : forward_simt<float>(p);
}

Gradients backward_any(const Problem& p, const Tensor& state, const Tensor& grad_o) {
  if (p.in.q_BTHd.scalar_type() == at::kBFloat16) return backward_bf16(p, state, grad_o);
  return p.in.q_BTHd.scalar_type() == at::kDouble ? backward_simt<double>(p, state, grad_o)
                                                  : backward_simt<float>(p, state, grad_o);
}

/// Autograd sees the tensors in front of `in`, which has them too; gradients are in their order.
class Cross : public torch::autograd::Function<Cross> {
 public:
  static Tensor forward(AutogradContext* ctx,
                        const Tensor& /*q*/,
                        const Tensor& /*k*/,
                        const Tensor& /*v*/,
                        const OptionalTensor& /*weight*/,
                        const OptionalTensor& /*bias*/,
                        const CrossInputs& in) {
    const c10::cuda::CUDAGuard guard(in.q_BTHd.device());
    const ForwardResult result = forward_any(Problem(in));
    ctx->save_for_backward({in.q_BTHd,
                            in.k_BSHd,
                            in.v_BSHd,
                            in.weight_MKd,
                            in.bias_MK,
                            in.source_mask_BS,
                            result.state});
    ctx->saved_data["scale"] = in.scale;
    ctx->saved_data["floor"] = in.rule.floor;
    ctx->saved_data["added"] = in.rule.added;
    ctx->saved_data["absolute"] = in.absolute;
    return result.o;
  }

  static variable_list backward(AutogradContext* ctx, const variable_list& gradients) {
    refuse_second_derivatives("cross");
    const auto saved = ctx->get_saved_variables();
    const c10::cuda::CUDAGuard guard(saved[0].device());
    const Problem p({.q_BTHd = saved[0],
                     .k_BSHd = saved[1],
                     .v_BSHd = saved[2],
                     .weight_MKd = saved[3],
                     .bias_MK = saved[4],
                     .source_mask_BS = saved[5],
                     .scale = ctx->saved_data["scale"].toDouble(),
                     .rule = {.floor = ctx->saved_data["floor"].toDouble(),
                              .added = ctx->saved_data["added"].toDouble()},
                     .absolute = ctx->saved_data["absolute"].toBool()});
    const Tensor grad_o =
        gradients[0].defined() ? readable_bf16(gradients[0]) : at::zeros_like(new_output(p));
    const Gradients g = backward_any(p, saved[6], grad_o);
    return {g.q,
            add_groups(g.k, 2, p.shape.key_heads),
            add_groups(g.v, 2, p.shape.value_heads),
            g.weight,
            g.bias,
            Tensor()};
  }
};

Tensor run(CrossInputs in) {
  in.weight_MKd = contiguous_and_aligned(in.weight_MKd);
  in.bias_MK = contiguous(in.bias_MK);
  in.source_mask_BS = contiguous(in.source_mask_BS);
  return Cross::apply(
      in.q_BTHd, in.k_BSHd, in.v_BSHd, optional(in.weight_MKd), optional(in.bias_MK), in);
}

/// The same without a map: features by tensor operations.
CrossInputs with_features(CrossInputs in) {
  const Tensor weight = in.weight_MKd, bias = in.bias_MK;
  in.weight_MKd = in.bias_MK = Tensor();
  if (in.source_mask_BS.defined()) {  // whatever padding holds, it may not reach d W
    in.k_BSHd =
        in.k_BSHd.masked_fill(in.source_mask_BS.logical_not().unsqueeze(2).unsqueeze(3), 0.0);
  }
  in.q_BTHd = map_features(in.q_BTHd, weight, bias, in.scale);
  in.k_BSHd = map_features(in.k_BSHd, weight, bias, 1.0);
  return in;
}

Tensor cross_bf16(CrossInputs in, const Shape& shape) {
  const bool has_map = in.weight_MKd.defined();
  if (!has_map && shape.feature_size % 8 != 0) {  // zeros behind the features: rows of 16 bytes
    const int64_t missing = 8 - shape.feature_size % 8;
    in.q_BTHd = at::constant_pad_nd(in.q_BTHd, {0, missing});
    in.k_BSHd = at::constant_pad_nd(in.k_BSHd, {0, missing});
    return cross(in);
  }
  check_bf16_strides(in.q_BTHd, "q");
  check_bf16_strides(in.k_BSHd, "k");
  check_bf16_strides(in.v_BSHd, "v");
  const c10::cuda::CUDAGuard guard(in.q_BTHd.device());  // whose kernels are chosen
  const auto has_kernel = [&](bool with_map) {
    return kernels::cuda::plan_cross(
               shape, static_cast<int>(in.k_BSHd.size(1)), with_map, false, current_device())
               .padded_features != 0;
  };
  if (has_kernel(has_map)) return run(in);
  // Without the map it may fit into this device's shared memory.
  if (has_map && has_kernel(false)) return cross(with_features(in));
  // Too large for the tensor-core kernels or this device: the float32 ones, one rounding at the
  // end.
  for (Tensor* tensor : {&in.q_BTHd, &in.k_BSHd, &in.v_BSHd}) *tensor = tensor->to(at::kFloat);
  if (has_map) in.weight_MKd = in.weight_MKd.to(at::kFloat), in.bias_MK = in.bias_MK.to(at::kFloat);
  return cross(in).to(at::kBFloat16);
}

}  // namespace

Tensor cross(const CrossInputs& inputs) {
  CrossInputs in = inputs;
  const Shape shape = check_cross(in);
  if (in.q_BTHd.scalar_type() == at::kBFloat16) return cross_bf16(in, shape);
  if (in.weight_MKd.defined()) in = with_features(in);
  for (Tensor* tensor : {&in.q_BTHd, &in.k_BSHd, &in.v_BSHd}) {
    if (tensor->stride(3) != 1) *tensor = tensor->contiguous();
  }
  return run(in);
}

}  // namespace t2r::ops
