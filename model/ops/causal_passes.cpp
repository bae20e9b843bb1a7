#include "model/ops/causal_passes.h"

#include <ATen/Functions.h>
#include <c10/cuda/CUDAStream.h>

#include "model/kernels/cuda/causal/causal_simt.h"
#include "model/ops/op_support.h"

namespace t2r::ops {
namespace {

using kernels::cuda::CausalArguments;
using kernels::cuda::Shape;
using kernels::cuda::SimtArguments;

CausalArguments common_arguments(const CausalProblem& p, bool backward) {
  CausalArguments a;
  a.shape = p.shape;
  a.rule = {static_cast<float>(p.in.scale),
            static_cast<float>(p.in.rule.floor),
            static_cast<float>(p.in.rule.added)};
  a.plan = kernels::cuda::plan_causal(p.shape,
                                      p.in.weight_MKd.defined(),
                                      p.in.document_start_BT.defined(),
                                      backward,
                                      current_device());
  a.q = view_of(p.in.q_BTHd);
  a.k = view_of(p.in.k_BTHd);
  a.v = view_of(p.in.v_BTHd);
  a.weight = pointer<void>(p.in.weight_MKd);
  a.bias = pointer<void>(p.in.bias_MK);
  a.document_start = pointer<int>(p.in.document_start_BT);
  a.initial_s = pointer<float>(p.in.initial_s_BMKd);
  a.initial_z = pointer<float>(p.in.initial_z_BMK);
  return a;
}

Tensor new_states(const CausalProblem& p, const CausalArguments& a) {
  return at::empty(
      {int64_t{p.shape.batch} * p.shape.query_heads * a.plan.chunks * a.plan.state_record_bytes},
      p.in.q_BTHd.options().dtype(at::kByte));
}

Tensor segment_sums(const CausalProblem& p, const CausalArguments& a) {
  if (a.plan.segments == 1) return {};
  return at::empty(
      {int64_t{p.shape.batch} * p.shape.query_heads * a.plan.segments * a.plan.sums_floats},
      p.state_options());
}

CausalResult forward_bf16(const CausalProblem& p, bool save, bool want_state) {
  CausalResult result;
  CausalArguments a = common_arguments(p, false);
  result.o = at::empty(p.output_sizes(), p.in.v_BTHd.options());
  a.o = view_of(result.o);
  if (want_state) {
    result.s = at::empty(p.state_sizes(p.shape.state_heads), p.state_options());
    result.z =
        at::empty({p.shape.batch, p.shape.state_heads, p.shape.feature_size}, p.state_options());
  }
  if (save) result.states = new_states(p, a);
  const Tensor sums = segment_sums(p, a);
  a.final_s = mutable_pointer<float>(result.s);
  a.final_z = mutable_pointer<float>(result.z);
  a.states = mutable_pointer<unsigned char>(result.states);
  a.sums = mutable_pointer<float>(sums);
  check_launch(kernels::cuda::causal_forward_bf16(a, c10::cuda::getCurrentCUDAStream()),
               "the forward kernel");
  return result;
}

CausalGradients backward_bf16(const CausalProblem& p,
                              const Tensor& states,
                              const CausalOutputs& grad,
                              CausalGradients g) {
  CausalArguments a = common_arguments(p, true);
  const auto empty = [&](int64_t columns) {
    return at::empty({p.shape.batch, p.shape.length, p.shape.query_heads, columns},
                     p.in.q_BTHd.options());
  };
  if (!g.q.defined()) g.q = empty(p.in.q_BTHd.size(3));
  if (!g.k.defined()) g.k = empty(p.in.k_BTHd.size(3));
  if (!g.v.defined()) g.v = empty(p.in.v_BTHd.size(3));
  a.grad_q = view_of(g.q);
  a.grad_k = view_of(g.k);
  a.grad_v = view_of(g.v);
  a.grad_o = view_of(grad.o_BTHd);
  a.states = mutable_pointer<unsigned char>(states);
  a.grad_final_s = pointer<float>(grad.s_BHKd);
  a.grad_final_z = pointer<float>(grad.z_BHK);
  if (p.in.initial_s_BMKd.defined()) {
    g.initial_s = at::empty(p.state_sizes(p.shape.query_heads), p.state_options());
    g.initial_z =
        at::empty({p.shape.batch, p.shape.query_heads, p.shape.feature_size}, p.state_options());
  }
  a.grad_initial_s = mutable_pointer<float>(g.initial_s);
  a.grad_initial_z = mutable_pointer<float>(g.initial_z);
  const Tensor sums = segment_sums(p, a);
  a.sums = mutable_pointer<float>(sums);
  Tensor row_values, parts;
  const int64_t items = int64_t{p.shape.batch} * p.shape.query_heads;
  if (a.plan.segments > 1) row_values = at::empty({items * 2 * p.shape.length}, p.state_options());
  a.row_values = mutable_pointer<float>(row_values);
  const int parts_per_item = a.plan.segments == 1 ? 1 : 2 * a.plan.segments;
  if (p.in.weight_MKd.defined()) {
    parts = at::empty({items * parts_per_item * p.shape.feature_size * (p.shape.head_size + 2)},
                      p.state_options());
  }
  a.grad_weight = mutable_pointer<float>(parts);
  const auto stream = c10::cuda::getCurrentCUDAStream();
  check_launch(kernels::cuda::causal_backward_bf16(a, stream), "the backward kernel");
  if (p.in.weight_MKd.defined()) {
    g.weight = at::empty(p.in.weight_MKd.sizes(), p.in.weight_MKd.options());
    g.bias = at::empty(p.in.bias_MK.sizes(), p.in.bias_MK.options());
    check_launch(kernels::cuda::sum_parts({.parts = pointer<float>(parts),
                                           .batch = p.shape.batch,
                                           .query_heads = p.shape.query_heads,
                                           .state_heads = p.shape.state_heads,
                                           .parts_per_item = parts_per_item,
                                           .features = p.shape.feature_size,
                                           .head_size = p.shape.head_size,
                                           .grad_weight = mutable_pointer<void>(g.weight),
                                           .grad_bias = mutable_pointer<void>(g.bias)},
                                          stream),
                 "the sum of the map's gradients");
  }
  return g;
}

template <class Scalar>
SimtArguments<Scalar> simt_arguments(const CausalProblem& p) {
  SimtArguments<Scalar> a;
  a.shape = p.shape;
  a.floor = p.in.rule.floor;
  a.added = p.in.rule.added;
  a.q = view_of(p.in.q_BTHd);
  a.k = view_of(p.in.k_BTHd);
  a.v = view_of(p.in.v_BTHd);
  a.document_start = pointer<int>(p.in.document_start_BT);
  a.initial_s = pointer<Scalar>(p.in.initial_s_BMKd);
  a.initial_z = pointer<Scalar>(p.in.initial_z_BMK);
  return a;
}

template <class Scalar>
CausalResult forward_simt(const CausalProblem& p, bool save) {
  require_shared_memory(kernels::cuda::causal_simt_bytes(p.shape, save, sizeof(Scalar)), "causal");
  CausalResult result;
  const int64_t chunks =
      (p.shape.length + kernels::cuda::kSimtChunk - 1) / kernels::cuda::kSimtChunk;
  const int64_t record = int64_t{p.shape.feature_size} * (p.shape.head_size + 1);
  result.o = at::empty(p.output_sizes(), p.in.v_BTHd.options());
  result.s = at::empty(p.state_sizes(p.shape.state_heads), p.state_options());
  result.z =
      at::empty({p.shape.batch, p.shape.state_heads, p.shape.feature_size}, p.state_options());
  if (save)
    result.states =
        at::empty({p.shape.batch, p.shape.query_heads, chunks, record}, p.state_options());
  auto a = simt_arguments<Scalar>(p);
  a.o = view_of(result.o);
  a.final_s = mutable_pointer<Scalar>(result.s);
  a.final_z = mutable_pointer<Scalar>(result.z);
  a.states = mutable_pointer<Scalar>(result.states);
  check_launch(kernels::cuda::causal_forward_simt(a, c10::cuda::getCurrentCUDAStream()),
               "the forward kernel");
  return result;
}

template <class Scalar>
CausalGradients backward_simt(const CausalProblem& p,
                              const Tensor& states,
                              const CausalOutputs& grad) {
  CausalGradients g;
  const auto empty = [&](int64_t columns) {
    return at::empty({p.shape.batch, p.shape.length, p.shape.query_heads, columns},
                     p.in.q_BTHd.options());
  };
  g.q = empty(p.in.q_BTHd.size(3));
  g.k = empty(p.in.k_BTHd.size(3));
  g.v = empty(p.in.v_BTHd.size(3));
  auto a = simt_arguments<Scalar>(p);
  a.grad_q = view_of(g.q);
  a.grad_k = view_of(g.k);
  a.grad_v = view_of(g.v);
  a.grad_o = view_of(grad.o_BTHd);
  a.states = mutable_pointer<Scalar>(states);
  a.grad_final_s = pointer<Scalar>(grad.s_BHKd);
  a.grad_final_z = pointer<Scalar>(grad.z_BHK);
  if (p.in.initial_s_BMKd.defined()) {
    g.initial_s = at::empty(p.state_sizes(p.shape.query_heads), p.state_options());
    g.initial_z =
        at::empty({p.shape.batch, p.shape.query_heads, p.shape.feature_size}, p.state_options());
  }
  a.grad_initial_s = mutable_pointer<Scalar>(g.initial_s);
  a.grad_initial_z = mutable_pointer<Scalar>(g.initial_z);
  check_launch(kernels::cuda::causal_backward_simt(a, c10::cuda::getCurrentCUDAStream()),
               "the backward kernel");
  return g;
}

}  // namespace

bool has_causal_kernel(const Shape& shape, bool has_map) {
  return kernels::cuda::plan_causal(shape, has_map, false, false, current_device()).engine !=
         kernels::cuda::Engine::kNone;
}

CausalResult causal_forward(const CausalProblem& p, bool save, bool want_state) {
  if (p.tensor_cores()) return forward_bf16(p, save, want_state);
  return p.in.q_BTHd.scalar_type() == at::kDouble ? forward_simt<double>(p, save)
                                                  : forward_simt<float>(p, save);
}

CausalGradients causal_backward(const CausalProblem& p,
                                const Tensor& states,
                                const CausalOutputs& grad,
                                CausalGradients written) {
  if (p.tensor_cores()) return backward_bf16(p, states, grad, std::move(written));
  return p.in.q_BTHd.scalar_type() == at::kDouble ? backward_simt<double>(p, states, grad)
                                                  : backward_simt<float>(p, states, grad);
}

bool has_features_passes(int64_t features, int64_t head_size) {
  const Shape shape{.batch = 1,
                    .length = 1,
                    .query_heads = 1,
                    .state_heads = 1,
                    .key_heads = 1,
                    .value_heads = 1,
                    .head_size = static_cast<int>(head_size),
                    .feature_size = static_cast<int>(features)};
  return features % 8 == 0 && has_causal_kernel(shape, /*has_map=*/false);
}

FeaturesForward causal_features_forward(const CausalInputs& in, bool save) {
  const CausalResult result = forward_bf16(CausalProblem(in), save, /*want_state=*/false);
  return {result.o, result.states};
}

FeatureGradients causal_features_backward(const CausalInputs& in,
                                          const Tensor& states,
                                          const Tensor& grad_o,
                                          const Tensor& grad_v) {
  const CausalProblem p(in);
  CausalGradients g;
  if (p.shape.value_heads == p.shape.query_heads) g.v = grad_v;
  g = backward_bf16(p, states, {.o_BTHd = readable_bf16(grad_o), .s_BHKd = {}, .z_BHK = {}}, g);
  return {g.q, add_groups(g.k, 2, p.shape.key_heads), add_groups(g.v, 2, p.shape.value_heads)};
}

}  // namespace t2r::ops
