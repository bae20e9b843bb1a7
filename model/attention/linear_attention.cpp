#include "model/attention/linear_attention.h"

#include <ATen/Parallel.h>
#include <torch/csrc/autograd/custom_function.h>

#include "base/error.h"
#include "model/gpu_ops.h"

namespace t2r::model {
namespace {

using kernels::CausalBackward;
using kernels::CausalForward;
using kernels::CausalShape;
using kernels::View;
using torch::Tensor;

void check_input(const Tensor& tensor, const char* name, const Tensor& like) {
  if (tensor.dim() != 4) {
    throw ContractError(
        concat(name, " has ", tensor.dim(), " dimensions, allowed: 4 ([B, T, H, D])"));
  }
  if (tensor.device().type() != torch::kCPU) {
    throw ContractError(concat(name, " is on ", tensor.device().str(), ", allowed: cpu"));
  }
  if (tensor.scalar_type() != torch::kFloat32 && tensor.scalar_type() != torch::kFloat64) {
    throw ContractError(
        concat(name, " has dtype ", tensor.scalar_type(), ", allowed: float32, float64"));
  }
  if (tensor.scalar_type() != like.scalar_type()) {
    throw ContractError(
        concat(name, " has dtype ", tensor.scalar_type(), ", phi_q has ", like.scalar_type()));
  }
  if (tensor.size(0) != like.size(0) || tensor.size(1) != like.size(1)) {
    throw ContractError(concat(name,
                               " has batch and length ",
                               tensor.size(0),
                               " x ",
                               tensor.size(1),
                               ", phi_q has ",
                               like.size(0),
                               " x ",
                               like.size(1)));
  }
}

CausalShape check_shapes(const Tensor& phi_q, const Tensor& phi_k, const Tensor& v) {
  check_input(phi_q, "phi_q", phi_q);
  check_input(phi_k, "phi_k", phi_q);
  check_input(v, "v", phi_q);
  const CausalShape shape{.batch = phi_q.size(0),
                          .length = phi_q.size(1),
                          .query_heads = phi_q.size(2),
                          .state_heads = phi_k.size(2),
                          .value_heads = v.size(2),
                          .feature_size = phi_q.size(3),
                          .value_size = v.size(3)};
  if (shape.feature_size == 0 || shape.value_size == 0 || shape.length == 0 || shape.batch == 0) {
    throw ContractError(concat("linear attention of an empty tensor: B ",
                               shape.batch,
                               ", T ",
                               shape.length,
                               ", K ",
                               shape.feature_size,
                               ", V ",
                               shape.value_size,
                               ", allowed: 1 or more each"));
  }
  if (phi_k.size(3) != shape.feature_size) {
    throw ContractError(
        concat("phi_k has ", phi_k.size(3), " features, phi_q has ", shape.feature_size));
  }
  if (shape.value_heads == 0 || shape.state_heads % shape.value_heads != 0 ||
      shape.query_heads % shape.state_heads != 0) {
    throw ContractError(concat("heads of phi_q, phi_k, v are ",
                               shape.query_heads,
                               ", ",
                               shape.state_heads,
                               ", ",
                               shape.value_heads,
                               ", allowed: each a multiple of the next"));
  }
  return shape;
}

void check_state(const LinearAttentionState& state, const CausalShape& shape, const Tensor& like) {
  const std::vector<int64_t> sizes_s{
      shape.batch, shape.state_heads, shape.feature_size, shape.value_size};
  const std::vector<int64_t> sizes_z{shape.batch, shape.state_heads, shape.feature_size};
  if (state.s_BHKV.sizes() != sizes_s || state.z_BHK.sizes() != sizes_z) {
    throw ContractError(concat("initial state has shapes ",
                               state.s_BHKV.sizes(),
                               " and ",
                               state.z_BHK.sizes(),
                               ", allowed: ",
                               torch::IntArrayRef(sizes_s),
                               " and ",
                               torch::IntArrayRef(sizes_z)));
  }
  if (state.s_BHKV.scalar_type() != like.scalar_type() ||
      state.z_BHK.scalar_type() != like.scalar_type()) {
    throw ContractError(concat(
        "initial state has dtype ", state.s_BHKV.scalar_type(), ", allowed: ", like.scalar_type()));
  }
}

Tensor rows_contiguous(const Tensor& tensor) {
  return tensor.stride(3) == 1 ? tensor : tensor.contiguous();
}

template <class T>
View<T> view_of(const Tensor& tensor) {
  using Element = std::remove_const_t<T>;
  return {tensor.data_ptr<Element>(), tensor.stride(0), tensor.stride(1), tensor.stride(2)};
}

template <class Body>
void for_each_item(const CausalShape& shape, const Body& body) {
  at::parallel_for(0, shape.batch * shape.value_heads, 1, [&](int64_t begin, int64_t end) {
    for (int64_t item = begin; item < end; ++item) body(item);
  });
}

class CausalAttention : public torch::autograd::Function<CausalAttention> {
 public:
  static torch::autograd::variable_list forward(torch::autograd::AutogradContext* ctx,
                                                const Tensor& phi_q_in,
                                                const Tensor& phi_k_in,
                                                const Tensor& v_in,
                                                const Tensor& s_in,
                                                const Tensor& z_in,
                                                double floor,
                                                double added) {
    const Tensor phi_q = rows_contiguous(phi_q_in), phi_k = rows_contiguous(phi_k_in),
                 v = rows_contiguous(v_in);
    const CausalShape shape = check_shapes(phi_q, phi_k, v);
    const Tensor o =
        torch::empty({shape.batch, shape.length, shape.query_heads, shape.value_size}, v.options());
    const Tensor denominator =
        torch::empty({shape.batch, shape.length, shape.query_heads}, v.options());
    const Tensor s = s_in.clone(torch::MemoryFormat::Contiguous),
                 z = z_in.clone(torch::MemoryFormat::Contiguous);
    AT_DISPATCH_FLOATING_TYPES(v.scalar_type(), "causal_linear_attention", [&] {
      const CausalForward<scalar_t> args{.shape = shape,
                                         .rule = {floor, added},
                                         .phi_q = view_of<const scalar_t>(phi_q),
                                         .phi_k = view_of<const scalar_t>(phi_k),
                                         .v = view_of<const scalar_t>(v),
                                         .o = view_of<scalar_t>(o),
                                         .denominator = denominator.data_ptr<scalar_t>(),
                                         .state_s = s.data_ptr<scalar_t>(),
                                         .state_z = z.data_ptr<scalar_t>()};
      for_each_item(shape, [&](int64_t item) { kernels::causal_forward<scalar_t>(args, item); });
    });
    ctx->save_for_backward({phi_q, phi_k, v, o, denominator, s_in, z_in});
    ctx->saved_data["floor"] = floor;
    ctx->saved_data["added"] = added;
    return {o, s, z};
  }

  static torch::autograd::variable_list backward(torch::autograd::AutogradContext* ctx,
                                                 const torch::autograd::variable_list& gradients) {
    const auto saved = ctx->get_saved_variables();
    const Tensor &phi_q = saved[0], &phi_k = saved[1], &v = saved[2], &o = saved[3];
    const CausalShape shape = check_shapes(phi_q, phi_k, v);
    const Tensor grad_o =
        gradients[0].defined() ? rows_contiguous(gradients[0]) : torch::zeros_like(o);
    const Tensor initial_s = saved[5].contiguous(), initial_z = saved[6].contiguous();
    const auto own_copy = [](const Tensor& gradient, const Tensor& like) {
      return gradient.defined() ? gradient.clone(torch::MemoryFormat::Contiguous)
                                : torch::zeros_like(like);
    };
    const Tensor grad_s = own_copy(gradients[1], initial_s),
                 grad_z = own_copy(gradients[2], initial_z);
    const Tensor grad_phi_q = torch::empty_like(phi_q), grad_phi_k = torch::empty_like(phi_k);
    const Tensor grad_v = torch::empty(v.sizes(), v.options());
    AT_DISPATCH_FLOATING_TYPES(v.scalar_type(), "causal_linear_attention_backward", [&] {
      const CausalBackward<scalar_t> args{
          .shape = shape,
          .rule = {ctx->saved_data["floor"].toDouble(), ctx->saved_data["added"].toDouble()},
          .phi_q = view_of<const scalar_t>(phi_q),
          .phi_k = view_of<const scalar_t>(phi_k),
          .v = view_of<const scalar_t>(v),
          .o = view_of<const scalar_t>(o),
          .grad_o = view_of<const scalar_t>(grad_o),
          .denominator = saved[4].data_ptr<scalar_t>(),
          .state_s = initial_s.data_ptr<scalar_t>(),
          .state_z = initial_z.data_ptr<scalar_t>(),
          .grad_phi_q = view_of<scalar_t>(grad_phi_q),
          .grad_phi_k = view_of<scalar_t>(grad_phi_k),
          .grad_v = view_of<scalar_t>(grad_v),
          .grad_state_s = grad_s.data_ptr<scalar_t>(),
          .grad_state_z = grad_z.data_ptr<scalar_t>()};
      for_each_item(shape, [&](int64_t item) { kernels::causal_backward<scalar_t>(args, item); });
    });
    return {grad_phi_q, grad_phi_k, grad_v, grad_s, grad_z, Tensor(), Tensor()};
  }
};

}  // namespace

LinearAttentionState zero_state(int64_t batch,
                                int64_t state_heads,
                                int64_t feature_size,
                                int64_t value_size,
                                const torch::TensorOptions& options) {
  return {torch::zeros({batch, state_heads, feature_size, value_size}, options),
          torch::zeros({batch, state_heads, feature_size}, options)};
}

LinearAttentionOutput causal_linear_attention(const Tensor& phi_q_BTHK,
                                              const Tensor& phi_k_BTHK,
                                              const Tensor& v_BTHV,
                                              const LinearAttentionState* initial,
                                              const DenominatorRule& rule) {
  if (v_BTHV.is_cuda())
    return gpu::causal_linear_attention(phi_q_BTHK, phi_k_BTHK, v_BTHV, initial, rule);
  const CausalShape shape = check_shapes(phi_q_BTHK, phi_k_BTHK, v_BTHV);
  if (initial != nullptr) check_state(*initial, shape, v_BTHV);
  const LinearAttentionState start = initial != nullptr ? *initial
                                                        : zero_state(shape.batch,
                                                                     shape.state_heads,
                                                                     shape.feature_size,
                                                                     shape.value_size,
                                                                     v_BTHV.options());
  const auto outputs = CausalAttention::apply(
      phi_q_BTHK, phi_k_BTHK, v_BTHV, start.s_BHKV, start.z_BHK, rule.floor, rule.added);
  return {outputs[0], {outputs[1], outputs[2]}};
}

}  // namespace t2r::model
