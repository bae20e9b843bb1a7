#include "model/ops/causal_op.h"

#include <ATen/Functions.h>
#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>
#include <torch/csrc/autograd/custom_function.h>
#include <torch/library.h>

#include "model/kernels/cuda/causal/causal_simt.h"
#include "model/ops/op_support.h"

namespace t2r::ops {
namespace {

using kernels::cuda::CausalArguments;
using kernels::cuda::Plan;
using kernels::cuda::Shape;
using kernels::cuda::SimtArguments;
using kernels::cuda::View;
using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

/// Everything between autograd and the kernels; undefined tensors are absent.
struct Problem {
  Shape shape;
  Tensor q, k, v, weight, bias, document_start, initial_s, initial_z;
  double scale, floor, added;

  bool tensor_cores() const { return q.scalar_type() == at::kBFloat16; }
  at::TensorOptions state_options() const {
    return q.options().dtype(q.scalar_type() == at::kDouble ? at::kDouble : at::kFloat);
  }
};

struct ForwardResult {
  Tensor o, s, z, states;
};

struct Gradients {
  Tensor q, k, v, weight, bias, initial_s, initial_z;
};

CausalArguments common_arguments(const Problem& p, bool backward) {
  CausalArguments a;
  a.shape = p.shape;
  a.rule = {static_cast<float>(p.scale), static_cast<float>(p.floor), static_cast<float>(p.added)};
  a.plan = kernels::cuda::plan_causal(
      p.shape, p.weight.defined(), p.document_start.defined(), backward, current_device());
  a.q = view_of(p.q);
  a.k = view_of(p.k);
  a.v = view_of(p.v);
  a.weight = pointer<void>(p.weight);
  a.bias = pointer<void>(p.bias);
  a.document_start = pointer<int>(p.document_start);
  a.initial_s = pointer<float>(p.initial_s);
  a.initial_z = pointer<float>(p.initial_z);
  return a;
}

Tensor new_states(const Problem& p, const CausalArguments& a) {
  return at::empty(
      {int64_t{p.shape.batch} * p.shape.query_heads * a.plan.chunks * a.plan.state_record_bytes},
      p.q.options().dtype(at::kByte));
}

Tensor segment_sums(const Problem& p, const CausalArguments& a) {
  if (a.plan.segments == 1) return {};
  return at::empty(
      {int64_t{p.shape.batch} * p.shape.query_heads * a.plan.segments * a.plan.sums_floats},
      p.state_options());
}

std::vector<int64_t> state_sizes(const Problem& p, int heads) {
  return {p.shape.batch, heads, p.shape.feature_size, p.shape.head_size};
}

ForwardResult forward_bf16(const Problem& p, bool save, bool want_state) {
  ForwardResult result;
  CausalArguments a = common_arguments(p, false);
  result.o = at::empty({p.shape.batch, p.shape.length, p.shape.query_heads, p.shape.head_size},
                       p.v.options());
  a.o = view_of(result.o);
  if (want_state) {
    result.s = at::empty(state_sizes(p, p.shape.state_heads), p.state_options());
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

/// What `g` has already of q, k and v is written in place.
Gradients backward_bf16(const Problem& p,
                        const Tensor& states,
                        const Tensor& grad_o,
                        const Tensor& grad_s,
                        const Tensor& grad_z,
                        Gradients g = {}) {
  CausalArguments a = common_arguments(p, true);
  const auto empty = [&](int64_t columns) {
    return at::empty({p.shape.batch, p.shape.length, p.shape.query_heads, columns}, p.q.options());
  };
  if (!g.q.defined()) g.q = empty(p.q.size(3));
  if (!g.k.defined()) g.k = empty(p.k.size(3));
  if (!g.v.defined()) g.v = empty(p.v.size(3));
  a.grad_q = view_of(g.q);
  a.grad_k = view_of(g.k);
  a.grad_v = view_of(g.v);
  a.grad_o = view_of(grad_o);
  a.states = mutable_pointer<unsigned char>(states);
  a.grad_final_s = pointer<float>(grad_s);
  a.grad_final_z = pointer<float>(grad_z);
  if (p.initial_s.defined()) {
    g.initial_s = at::empty(state_sizes(p, p.shape.query_heads), p.state_options());
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
  if (p.weight.defined()) {
    parts = at::empty({items * parts_per_item * p.shape.feature_size * (p.shape.head_size + 2)},
                      p.state_options());
  }
  a.grad_weight = mutable_pointer<float>(parts);
  const auto stream = c10::cuda::getCurrentCUDAStream();
  check_launch(kernels::cuda::causal_backward_bf16(a, stream), "the backward kernel");
  if (p.weight.defined()) {
    g.weight = at::empty(p.weight.sizes(), p.weight.options());
    g.bias = at::empty(p.bias.sizes(), p.bias.options());
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
SimtArguments<Scalar> simt_arguments(const Problem& p) {
  SimtArguments<Scalar> a;
  a.shape = p.shape;
  a.floor = p.floor;
  a.added = p.added;
  a.q = view_of(p.q);
  a.k = view_of(p.k);
  a.v = view_of(p.v);
  a.document_start = pointer<int>(p.document_start);
  a.initial_s = pointer<Scalar>(p.initial_s);
  a.initial_z = pointer<Scalar>(p.initial_z);
  return a;
}

template <class Scalar>
ForwardResult forward_simt(const Problem& p, bool save) {
  require_shared_memory(kernels::cuda::causal_simt_bytes(p.shape, save, sizeof(Scalar)), "causal");
  ForwardResult result;
  const int64_t chunks =
      (p.shape.length + kernels::cuda::kSimtChunk - 1) / kernels::cuda::kSimtChunk;
  const int64_t record = int64_t{p.shape.feature_size} * (p.shape.head_size + 1);
  result.o = at::empty({p.shape.batch, p.shape.length, p.shape.query_heads, p.shape.head_size},
                       p.v.options());
  result.s = at::empty(state_sizes(p, p.shape.state_heads), p.state_options());
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
Gradients backward_simt(const Problem& p,
                        const Tensor& states,
                        const Tensor& grad_o,
                        const Tensor& grad_s,
                        const Tensor& grad_z) {
  Gradients g;
  const auto empty = [&](int64_t columns) {
    return at::empty({p.shape.batch, p.shape.length, p.shape.query_heads, columns}, p.q.options());
  };
  g.q = empty(p.q.size(3));
  g.k = empty(p.k.size(3));
  g.v = empty(p.v.size(3));
  auto a = simt_arguments<Scalar>(p);
  a.grad_q = view_of(g.q);
  a.grad_k = view_of(g.k);
  a.grad_v = view_of(g.v);
  a.grad_o = view_of(grad_o);
  a.states = mutable_pointer<Scalar>(states);
  a.grad_final_s = pointer<Scalar>(grad_s);
  a.grad_final_z = pointer<Scalar>(grad_z);
  if (p.initial_s.defined()) {
    g.initial_s = at::empty(state_sizes(p, p.shape.query_heads), p.state_options());
    g.initial_z =
        at::empty({p.shape.batch, p.shape.query_heads, p.shape.feature_size}, p.state_options());
  }
  a.grad_initial_s = mutable_pointer<Scalar>(g.initial_s);
  a.grad_initial_z = mutable_pointer<Scalar>(g.initial_z);
  check_launch(kernels::cuda::causal_backward_simt(a, c10::cuda::getCurrentCUDAStream()),
               "the backward kernel");
  return g;
}

ForwardResult forward_any(const Problem& p, bool save, bool want_state) {
  if (p.tensor_cores()) return forward_bf16(p, save, want_state);
  return p.q.scalar_type() == at::kDouble ? forward_simt<double>(p, save)
                                          : forward_simt<float>(p, save);
}

Gradients backward_any(const Problem& p,
                       const Tensor& states,
                       const Tensor& grad_o,
                       const Tensor& grad_s,
                       const Tensor& grad_z) {
  if (p.tensor_cores()) return backward_bf16(p, states, grad_o, grad_s, grad_z);
  return p.q.scalar_type() == at::kDouble ? backward_simt<double>(p, states, grad_o, grad_s, grad_z)
                                          : backward_simt<float>(p, states, grad_o, grad_s, grad_z);
}

class Causal : public torch::autograd::Function<Causal> {
 public:
  static variable_list forward(AutogradContext* ctx,
                               const Tensor& q,
                               const Tensor& k,
                               const Tensor& v,
                               const OptionalTensor& weight,
                               const OptionalTensor& bias,
                               const OptionalTensor& document_start,
                               const OptionalTensor& initial_s,
                               const OptionalTensor& initial_z,
                               double scale,
                               double floor,
                               double added,
                               bool want_state,
                               bool save) {
    const c10::cuda::CUDAGuard guard(q.device());
    const auto or_undefined = [](const OptionalTensor& tensor) {
      return tensor.value_or(Tensor());
    };
    const Problem p = problem(q,
                              k,
                              v,
                              or_undefined(weight),
                              or_undefined(bias),
                              or_undefined(document_start),
                              or_undefined(initial_s),
                              or_undefined(initial_z),
                              scale,
                              floor,
                              added);
    const ForwardResult result = forward_any(p, save, want_state);
    ctx->save_for_backward(
        {q, k, v, p.weight, p.bias, p.document_start, p.initial_s, p.initial_z, result.states});
    ctx->saved_data["scale"] = scale;
    ctx->saved_data["floor"] = floor;
    ctx->saved_data["added"] = added;
    if (!want_state) return {result.o};
    return {result.o, result.s, result.z};
  }

  static variable_list backward(AutogradContext* ctx, const variable_list& gradients) {
    refuse_second_derivatives("causal");
    const auto saved = ctx->get_saved_variables();
    const c10::cuda::CUDAGuard guard(saved[0].device());
    const Problem p = problem(saved[0],
                              saved[1],
                              saved[2],
                              saved[3],
                              saved[4],
                              saved[5],
                              saved[6],
                              saved[7],
                              ctx->saved_data["scale"].toDouble(),
                              ctx->saved_data["floor"].toDouble(),
                              ctx->saved_data["added"].toDouble());
    const Tensor grad_o =
        gradients[0].defined()
            ? (p.tensor_cores() ? readable_bf16(gradients[0]) : gradients[0].contiguous())
            : at::zeros({p.shape.batch, p.shape.length, p.shape.query_heads, p.shape.head_size},
                        p.v.options());
    Tensor grad_s, grad_z;
    if (gradients.size() == 3 && (gradients[1].defined() || gradients[2].defined())) {
      grad_s = gradients[1].defined()
                   ? gradients[1].contiguous()
                   : at::zeros(state_sizes(p, p.shape.state_heads), p.state_options());
      grad_z = gradients[2].defined()
                   ? gradients[2].contiguous()
                   : at::zeros({p.shape.batch, p.shape.state_heads, p.shape.feature_size},
                               p.state_options());
    }
    const Gradients g = backward_any(p, saved[8], grad_o, grad_s, grad_z);
    const Shape& shape = p.shape;
    return {g.q,
            add_groups(g.k, 2, shape.key_heads),
            add_groups(g.v, 2, shape.value_heads),
            g.weight,
            g.bias,
            Tensor(),
            add_groups(g.initial_s, 1, shape.state_heads),
            add_groups(g.initial_z, 1, shape.state_heads),
            Tensor(),
            Tensor(),
            Tensor(),
            Tensor(),
            Tensor()};
  }

 private:
  static Problem problem(const Tensor& q,
                         const Tensor& k,
                         const Tensor& v,
                         const Tensor& weight,
                         const Tensor& bias,
                         const Tensor& document_start,
                         const Tensor& initial_s,
                         const Tensor& initial_z,
                         double scale,
                         double floor,
                         double added) {
    const auto optional = [](const Tensor& tensor) {
      return tensor.defined() ? OptionalTensor(tensor) : std::nullopt;
    };
    const CausalInputs inputs{q,
                              k,
                              v,
                              optional(weight),
                              optional(bias),
                              optional(document_start),
                              optional(initial_s),
                              optional(initial_z),
                              scale,
                              floor,
                              added};
    return {check_causal(inputs),
            q,
            k,
            v,
            weight,
            bias,
            document_start,
            initial_s,
            initial_z,
            scale,
            floor,
            added};
  }
};

/// The same in bfloat16 on a fused projection, whose gradient is written where it belongs instead
/// of put together from three.
class CausalQkv : public torch::autograd::Function<CausalQkv> {
 public:
  static Tensor forward(AutogradContext* ctx,
                        const Tensor& qkv,
                        const Tensor& weight,
                        const Tensor& bias,
                        int64_t query_heads,
                        double scale,
                        double floor,
                        double added,
                        bool save) {
    const c10::cuda::CUDAGuard guard(qkv.device());
    const Problem p = problem(qkv, weight, bias, query_heads, scale, floor, added);
    const ForwardResult result = forward_bf16(p, save, /*want_state=*/false);
    ctx->save_for_backward({qkv, weight, bias, result.states});
    ctx->saved_data["query_heads"] = query_heads;
    ctx->saved_data["scale"] = scale;
    ctx->saved_data["floor"] = floor;
    ctx->saved_data["added"] = added;
    return result.o;
  }

  static variable_list backward(AutogradContext* ctx, const variable_list& gradients) {
    refuse_second_derivatives("causal_qkv");
    const auto saved = ctx->get_saved_variables();
    const Tensor& qkv = saved[0];
    const c10::cuda::CUDAGuard guard(qkv.device());
    const int64_t query_heads = ctx->saved_data["query_heads"].toInt();
    const Problem p = problem(qkv,
                              saved[1],
                              saved[2],
                              query_heads,
                              ctx->saved_data["scale"].toDouble(),
                              ctx->saved_data["floor"].toDouble(),
                              ctx->saved_data["added"].toDouble());
    const Tensor grad_qkv = at::empty(qkv.sizes(), qkv.options());
    const auto [grad_q, grad_k, grad_v] = qkv_parts(grad_qkv, query_heads);
    const bool grouped = p.shape.key_heads != p.shape.query_heads;
    Gradients g;
    g.q = grad_q;
    if (!grouped) {
      g.k = grad_k;
      g.v = grad_v;
    }
    g = backward_bf16(p, saved[3], readable_bf16(gradients[0]), {}, {}, g);
    if (grouped) {
      grad_k.copy_(add_groups(g.k, 2, p.shape.key_heads));
      grad_v.copy_(add_groups(g.v, 2, p.shape.value_heads));
    }
    return {grad_qkv, g.weight, g.bias, Tensor(), Tensor(), Tensor(), Tensor(), Tensor()};
  }

 private:
  static Problem problem(const Tensor& qkv,
                         const Tensor& weight,
                         const Tensor& bias,
                         int64_t query_heads,
                         double scale,
                         double floor,
                         double added) {
    const auto [q, k, v] = qkv_parts(qkv, query_heads);
    return {check_causal({q, k, v, weight, bias, {}, {}, {}, scale, floor, added}),
            q,
            k,
            v,
            weight,
            bias,
            {},
            {},
            {},
            scale,
            floor,
            added};
  }
};

CausalOutputs run(const CausalInputs& in, bool want_state) {
  const variable_list out = Causal::apply(in.q_BTHd,
                                          in.k_BTHd,
                                          in.v_BTHd,
                                          contiguous_and_aligned(in.weight_HKd),
                                          contiguous(in.bias_HK),
                                          contiguous(in.document_start_BT),
                                          contiguous(in.initial_s_BHKd),
                                          contiguous(in.initial_z_BHK),
                                          in.scale,
                                          in.floor,
                                          in.added,
                                          want_state,
                                          needs_gradient(in));
  return want_state ? CausalOutputs{out[0], out[1], out[2]} : CausalOutputs{out[0], {}, {}};
}

CausalOutputs causal_any(CausalInputs in, bool want_state);

/// Given features in bfloat16 whose number is no multiple of 8 (16 bytes), with zeros behind them.
CausalOutputs causal_padded(CausalInputs in, bool want_state) {
  const int64_t features = in.q_BTHd.size(3), missing = (features + 7) / 8 * 8 - features;
  in.q_BTHd = at::constant_pad_nd(in.q_BTHd, {0, missing});
  in.k_BTHd = at::constant_pad_nd(in.k_BTHd, {0, missing});
  if (in.initial_s_BHKd.has_value()) {
    in.initial_s_BHKd = at::constant_pad_nd(*in.initial_s_BHKd, {0, 0, 0, missing});
    in.initial_z_BHK = at::constant_pad_nd(*in.initial_z_BHK, {0, missing});
  }
  CausalOutputs out = causal_any(in, want_state);
  if (want_state) {
    out.s_BHKd = out.s_BHKd.slice(2, 0, features)
                     .contiguous();  // as every state is, and decode_step asks for
    out.z_BHK = out.z_BHK.slice(2, 0, features).contiguous();
  }
  return out;
}

/// Whether this device has a tensor-core kernel for the shape.
bool has_kernel(const Shape& shape, bool has_map) {
  return kernels::cuda::plan_causal(shape, has_map, false, false, current_device()).engine !=
         kernels::cuda::Engine::kNone;
}

/// As check_bf16_strides(), of all three.
void check_strides(const CausalInputs& in) {
  check_bf16_strides(in.q_BTHd, "q");
  check_bf16_strides(in.k_BTHd, "k");
  check_bf16_strides(in.v_BTHd, "v");
}

/// The same without a map: features by tensor operations.
CausalInputs with_features(CausalInputs in) {
  const Tensor weight = *in.weight_HKd, bias = *in.bias_HK;
  in.weight_HKd = in.bias_HK = std::nullopt;
  in.q_BTHd = map_features(in.q_BTHd, weight, bias, in.scale);
  in.k_BTHd = map_features(in.k_BTHd, weight, bias, 1.0);
  return in;
}

CausalOutputs causal_any(CausalInputs in, bool want_state) {
  const Shape shape = check_causal(in);
  const c10::cuda::CUDAGuard guard(in.q_BTHd.device());  // whose kernels are chosen
  const bool has_map = in.weight_HKd.has_value();
  const auto type = in.q_BTHd.scalar_type();
  if (type == at::kBFloat16) {
    if (!has_map && shape.feature_size % 8 != 0) {
      check_bf16_strides(in.v_BTHd, "v");
      return causal_padded(in, want_state);
    }
    check_strides(in);
    if (has_kernel(shape, has_map)) return run(in, want_state);
    // Without the map it may fit into this device's shared memory.
    if (has_map && has_kernel(shape, false)) return causal_any(with_features(in), want_state);
    // Too large for the tensor-core kernels or this device: the float32 ones, one rounding at the
    // end.
    for (Tensor* tensor : {&in.q_BTHd, &in.k_BTHd, &in.v_BTHd}) *tensor = tensor->to(at::kFloat);
    if (has_map)
      in.weight_HKd = in.weight_HKd->to(at::kFloat), in.bias_HK = in.bias_HK->to(at::kFloat);
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

CausalOutputs causal(const CausalInputs& inputs) {
  return causal_any(inputs, true);
}

namespace {

Problem features_problem(const CausalInputs& in) {
  return {check_causal(in),
          in.q_BTHd,
          in.k_BTHd,
          in.v_BTHd,
          {},
          {},
          {},
          {},
          {},
          in.scale,
          in.floor,
          in.added};
}

}  // namespace

bool has_features_passes(int64_t features, int64_t head_size) {
  const Shape shape{.batch = 1,
                    .length = 1,
                    .query_heads = 1,
                    .state_heads = 1,
                    .key_heads = 1,
                    .value_heads = 1,
                    .head_size = static_cast<int>(head_size),
                    .feature_size = static_cast<int>(features)};
  return features % 8 == 0 && has_kernel(shape, /*has_map=*/false);
}

FeaturesForward causal_features_forward(const CausalInputs& in, bool save) {
  const ForwardResult result = forward_bf16(features_problem(in), save, /*want_state=*/false);
  return {result.o, result.states};
}

FeatureGradients causal_features_backward(const CausalInputs& in,
                                          const Tensor& states,
                                          const Tensor& grad_o,
                                          const Tensor& grad_v) {
  const Problem p = features_problem(in);
  Gradients g;
  if (p.shape.value_heads == p.shape.query_heads) g.v = grad_v;
  g = backward_bf16(p, states, readable_bf16(grad_o), {}, {}, g);
  return {g.q, add_groups(g.k, 2, p.shape.key_heads), add_groups(g.v, 2, p.shape.value_heads)};
}

namespace {

Tensor op_causal(const Tensor& q,
                 const Tensor& k,
                 const Tensor& v,
                 const Tensor& weight,
                 const Tensor& bias,
                 double scale,
                 double floor,
                 double added,
                 const OptionalTensor& document_start) {
  return causal_any({q, k, v, weight, bias, document_start, {}, {}, scale, floor, added}, false)
      .o_BTHd;
}

std::tuple<Tensor, Tensor, Tensor> op_causal_with_state(const Tensor& q,
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
  const auto out = causal_any(
      {q, k, v, weight, bias, document_start, initial_s, initial_z, scale, floor, added}, true);
  return {out.o_BTHd, out.s_BHKd, out.z_BHK};
}

std::tuple<Tensor, Tensor, Tensor> op_causal_features(const Tensor& phi_q,
                                                      const Tensor& phi_k,
                                                      const Tensor& v,
                                                      const OptionalTensor& initial_s,
                                                      const OptionalTensor& initial_z,
                                                      double floor,
                                                      double added,
                                                      const OptionalTensor& document_start) {
  const auto out = causal_any(
      {phi_q, phi_k, v, {}, {}, document_start, initial_s, initial_z, 1.0, floor, added}, true);
  return {out.o_BTHd, out.s_BHKd, out.z_BHK};
}

Tensor op_causal_qkv(const Tensor& qkv,
                     const Tensor& weight,
                     const Tensor& bias,
                     int64_t query_heads,
                     double scale,
                     double floor,
                     double added) {
  const auto [q, k, v] = qkv_parts(qkv, query_heads);
  const CausalInputs inputs{q, k, v, weight, bias, {}, {}, {}, scale, floor, added};
  const Shape shape = check_causal(inputs);
  const c10::cuda::CUDAGuard guard(qkv.device());
  // The kernels for float32 take given features: the general operator makes them.
  if (qkv.scalar_type() != at::kBFloat16 || !has_kernel(shape, /*has_map=*/true))
    return causal_any(inputs, false).o_BTHd;
  check_strides(inputs);
  return CausalQkv::apply(qkv,
                          *contiguous_and_aligned(weight),
                          bias.contiguous(),
                          query_heads,
                          scale,
                          floor,
                          added,
                          needs_gradient(inputs));
}

}  // namespace

TORCH_LIBRARY(t2r, library) {
  library.def(
      "causal(Tensor q, Tensor k, Tensor v, Tensor weight, Tensor bias, *, float scale=1.0, float "
      "floor=0.01, float added=0.0, "
      "Tensor? document_start=None) -> Tensor");
  library.def(
      "causal_qkv(Tensor qkv, Tensor weight, Tensor bias, int query_heads, *, float scale=1.0, "
      "float floor=0.01, float added=0.0) -> Tensor");
  library.def(
      "causal_with_state(Tensor q, Tensor k, Tensor v, Tensor weight, Tensor bias, Tensor? "
      "initial_s=None, Tensor? "
      "initial_z=None, *, float scale=1.0, float floor=0.01, float added=0.0, Tensor? "
      "document_start=None) -> (Tensor, Tensor, "
      "Tensor)");
  library.def(
      "causal_features(Tensor phi_q, Tensor phi_k, Tensor v, Tensor? initial_s=None, Tensor? "
      "initial_z=None, *, float "
      "floor=0.01, float added=0.0, Tensor? document_start=None) -> (Tensor, Tensor, Tensor)");
}

TORCH_LIBRARY_IMPL(t2r, CompositeImplicitAutograd, library) {
  library.impl("causal", op_causal);
  library.impl("causal_qkv", op_causal_qkv);
  library.impl("causal_with_state", op_causal_with_state);
  library.impl("causal_features", op_causal_features);
}

}  // namespace t2r::ops
