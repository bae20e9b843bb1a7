#include "model/ops/linear_op.h"

#include <ATen/Functions.h>
#include <ATen/core/grad_mode.h>
#include <c10/cuda/CUDAGuard.h>
#include <torch/csrc/autograd/custom_function.h>

#include "model/ops/matmul_lt.h"
#include "model/ops/op_support.h"

namespace t2r::ops {
namespace {

using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

Tensor product(const Tensor& a, const Tensor& b) {
  const Tensor out = at::empty({a.size(0), b.size(1)}, a.options().requires_grad(false));
  matmul_lt({.a = a, .b = b, .out = out});
  return out;
}

class Linear : public torch::autograd::Function<Linear> {
 public:
  static Tensor forward(AutogradContext* ctx,
                        const Tensor& x,
                        const Tensor& weight,
                        const OptionalTensor& bias,
                        bool input_major) {
    const c10::cuda::CUDAGuard guard(x.device());
    const Projection projection{weight, bias, input_major};
    const Tensor y = empty_projected(x, projection.outputs());
    Matmul forward{.a = as_rows(x), .b = projection.in_by_out(), .out = as_rows(y)};
    if (bias.has_value()) forward.epilogue = Epilogue::kBias, forward.bias = *bias;
    matmul_lt(forward);
    // A frozen weight needs no x.
    ctx->save_for_backward({weight.requires_grad() ? x : Tensor(), weight});
    ctx->saved_data["input_major"] = input_major;
    ctx->saved_data["has_bias"] = bias.has_value();
    ctx->saved_data["x_sizes"] = x.sizes().vec();
    return y;
  }

  static variable_list backward(AutogradContext* ctx, const variable_list& gradients) {
    if (!gradients[0].defined()) return variable_list(4);
    const at::NoGradGuard no_grad;
    const auto saved = ctx->get_saved_variables();
    const Tensor &x = saved[0], &weight = saved[1];
    const c10::cuda::CUDAGuard guard(weight.device());
    const bool input_major = ctx->saved_data["input_major"].toBool();
    const bool want_bias = ctx->saved_data["has_bias"].toBool() && ctx->needs_input_grad(2);
    const Tensor grad_NO = as_rows(gradients[0]);
    Tensor grad_x;
    if (ctx->needs_input_grad(0)) {
      grad_x = input_gradient(grad_NO, weight, input_major)
                   .view(ctx->saved_data["x_sizes"].toIntVector());
    }
    Tensor x_NI;
    const bool want_weight = ctx->needs_input_grad(1);
    if (want_weight) x_NI = as_rows(x);
    const ProjectionGradients g =
        projection_gradients(x_NI, grad_NO, input_major, want_weight, want_bias);
    return {grad_x, g.weight, g.bias, Tensor()};
  }
};

}  // namespace

Tensor empty_projected(const Tensor& x, int64_t outputs) {
  std::vector<int64_t> sizes = x.sizes().vec();
  sizes.back() = outputs;
  return at::empty(sizes, x.options().requires_grad(false));
}

void check_projection(const Tensor& x,
                      const Projection& projection,
                      const char* weight_name,
                      const char* bias_name) {
  const auto check_like_x = [&](const Tensor& tensor, const char* name) {
    TORCH_CHECK(tensor.device() == x.device(),
                "t2r: ",
                name,
                " is on ",
                tensor.device(),
                ", x is on ",
                x.device(),
                ", allowed: one device");
    TORCH_CHECK(tensor.scalar_type() == x.scalar_type(),
                "t2r: ",
                name,
                " has dtype ",
                tensor.scalar_type(),
                ", x has ",
                x.scalar_type(),
                ", allowed: the same");
  };
  TORCH_CHECK(x.is_cuda(), "t2r: x is on ", x.device(), ", allowed: cuda");
  TORCH_CHECK(x.scalar_type() == at::kBFloat16 || x.scalar_type() == at::kFloat,
              "t2r: x has dtype ",
              x.scalar_type(),
              ", allowed: bfloat16, float32");
  TORCH_CHECK(x.dim() >= 1, "t2r: x has 0 dimensions, allowed: 1 or more");
  check_like_x(projection.weight, weight_name);
  TORCH_CHECK(projection.weight.dim() == 2,
              "t2r: ",
              weight_name,
              " has ",
              projection.weight.dim(),
              " dimensions, allowed: 2");
  TORCH_CHECK(projection.inputs() >= 1 && projection.outputs() >= 1,
              "t2r: ",
              weight_name,
              " has shape ",
              projection.weight.sizes(),
              ", allowed: not empty");
  if (projection.bias.has_value()) {
    check_like_x(*projection.bias, bias_name);
    TORCH_CHECK(projection.bias->dim() == 1 && projection.bias->size(0) == projection.outputs(),
                "t2r: ",
                bias_name,
                " has shape ",
                projection.bias->sizes(),
                ", allowed: [",
                projection.outputs(),
                "]");
  }
}

ProjectionGradients projection_gradients(
    const Tensor& x_NI, const Tensor& grad_NO, bool input_major, bool want_weight, bool want_bias) {
  ProjectionGradients g;
  if (want_bias) g.bias = column_sum(grad_NO);
  if (!want_weight) return g;
  Matmul product;
  product.a = input_major ? x_NI.t() : grad_NO.t();
  product.b = input_major ? grad_NO : x_NI;
  product.out = g.weight =
      at::empty({product.a.size(0), product.b.size(1)}, grad_NO.options().requires_grad(false));
  matmul_lt(product);
  return g;
}

Tensor input_gradient(const Tensor& grad_NO, const Tensor& weight, bool input_major) {
  return product(grad_NO, input_major ? weight.t() : weight);
}

Tensor linear(const Tensor& x, const Projection& projection) {
  check_projection(x, projection, "weight", "bias");
  TORCH_CHECK(x.size(-1) == projection.inputs(),
              "t2r: x has ",
              x.size(-1),
              " columns, allowed: ",
              projection.inputs(),
              ", the inputs of weight");
  return Linear::apply(x, projection.weight, contiguous(projection.bias), projection.input_major);
}

}  // namespace t2r::ops
