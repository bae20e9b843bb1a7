#include "model/ops/mlp_op.h"

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

// Legend: N tokens, I inputs, H inner, O outputs.
class MlpGelu : public torch::autograd::Function<MlpGelu> {
 public:
  static Tensor forward(AutogradContext* ctx,
                        const Tensor& x,
                        const Tensor& w1,
                        const Tensor& b1,
                        const Tensor& w2,
                        const Tensor& b2,
                        bool input_major,
                        bool save) {
    const c10::cuda::CUDAGuard guard(x.device());
    const Projection up{w1, b1, input_major}, down{w2, b2, input_major};
    const Tensor inner_NH = as_rows(empty_projected(x, up.outputs())),
                 y = empty_projected(x, down.outputs());
    Tensor pre_NH;
    if (save) pre_NH = at::empty_like(inner_NH);
    matmul_lt({.a = as_rows(x),
               .b = up.in_by_out(),
               .out = inner_NH,
               .epilogue = Epilogue::kGelu,
               .bias = b1,
               .aux = pre_NH});
    matmul_lt({.a = inner_NH,
               .b = down.in_by_out(),
               .out = as_rows(y),
               .epilogue = Epilogue::kBias,
               .bias = b2});
    if (save) {  // each only where a gradient that may be asked for needs it
      const bool before = x.requires_grad() || w1.requires_grad() || b1.requires_grad();
      ctx->save_for_backward({w1.requires_grad() ? x : Tensor(),
                              w1,
                              w2,
                              before ? pre_NH : Tensor(),
                              w2.requires_grad() ? inner_NH : Tensor()});
    }
    ctx->saved_data["input_major"] = input_major;
    ctx->saved_data["x_sizes"] = x.sizes().vec();
    return y;
  }

  static variable_list backward(AutogradContext* ctx, const variable_list& gradients) {
    if (!gradients[0].defined()) return variable_list(7);
    const at::NoGradGuard no_grad;
    const auto saved = ctx->get_saved_variables();
    const Tensor &x = saved[0], &w1 = saved[1], &w2 = saved[2], &pre_NH = saved[3],
                 &inner_NH = saved[4];
    const c10::cuda::CUDAGuard guard(w1.device());
    const bool input_major = ctx->saved_data["input_major"].toBool();
    const auto needs = [&](size_t input) { return ctx->needs_input_grad(input); };
    const Tensor grad_NO = as_rows(gradients[0]).contiguous();  // two products read it
    const ProjectionGradients down =
        projection_gradients(inner_NH, grad_NO, input_major, needs(3), needs(4));
    Tensor grad_x;
    ProjectionGradients up;
    if (needs(0) || needs(1) || needs(2)) {
      const Tensor grad_pre_NH = at::empty_like(pre_NH);
      matmul_lt({.a = grad_NO,
                 .b = input_major ? w2.t() : w2,
                 .out = grad_pre_NH,
                 .epilogue = Epilogue::kDGelu,
                 .aux = pre_NH});
      Tensor x_NI;
      if (needs(1)) x_NI = as_rows(x);
      up = projection_gradients(x_NI, grad_pre_NH, input_major, needs(1), needs(2));
      if (needs(0))
        grad_x = input_gradient(grad_pre_NH, w1, input_major)
                     .view(ctx->saved_data["x_sizes"].toIntVector());
    }
    return {grad_x, up.weight, up.bias, down.weight, down.bias, Tensor(), Tensor()};
  }
};

/// As model::Linear computes it.
Tensor plain_linear(const Tensor& x, const Projection& projection) {
  if (!projection.input_major) return at::linear(x, projection.weight, projection.bias);
  std::vector<int64_t> sizes = x.sizes().vec();
  sizes.back() = projection.outputs();
  return at::addmm(*projection.bias, x.reshape({-1, projection.inputs()}), projection.weight)
      .view(sizes);
}

}  // namespace

Tensor mlp_gelu(const Tensor& x, const Projection& up, const Projection& down) {
  check_projection(x, up, "w1", "b1");
  check_projection(x, down, "w2", "b2");
  TORCH_CHECK(up.bias.has_value() && down.bias.has_value(), "t2r: b1 and b2 are needed");
  TORCH_CHECK(up.input_major == down.input_major,
              "t2r: input_major is ",
              up.input_major,
              " for w1 and ",
              down.input_major,
              " for w2, allowed: the same");
  TORCH_CHECK(x.size(-1) == up.inputs(),
              "t2r: x has ",
              x.size(-1),
              " columns, allowed: ",
              up.inputs(),
              ", the inputs of w1");
  TORCH_CHECK(down.inputs() == up.outputs(),
              "t2r: w2 has ",
              down.inputs(),
              " inputs, allowed: ",
              up.outputs(),
              ", the outputs of w1");
  if (x.scalar_type() == at::kFloat) {
    const c10::cuda::CUDAGuard guard(x.device());
    return plain_linear(at::gelu(plain_linear(x, up), "tanh"), down);
  }
  const bool save = at::GradMode::is_enabled() &&
                    (x.requires_grad() || up.weight.requires_grad() || up.bias->requires_grad() ||
                     down.weight.requires_grad() || down.bias->requires_grad());
  return MlpGelu::apply(x,
                        up.weight,
                        up.bias->contiguous(),
                        down.weight,
                        down.bias->contiguous(),
                        up.input_major,
                        save);
}

}  // namespace t2r::ops
