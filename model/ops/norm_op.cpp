#include "model/ops/norm_op.h"

#include <ATen/Functions.h>
#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>
#include <torch/csrc/autograd/custom_function.h>

#include "model/kernels/cuda/pointwise/norm.h"
#include "model/ops/op_support.h"
#include "model/ops/training_inputs.h"

namespace t2r::ops {
namespace {

using kernels::cuda::kMaxNormWidth;
using kernels::cuda::NormBackward;
using kernels::cuda::NormForward;
using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

void check_norm(const char* op,
                const Tensor& x,
                const OptionalTensor& delta,
                const Tensor& weight,
                const OptionalTensor& bias,
                double eps) {
  check_leading(x, op, "x", 1);
  const int64_t width = x.size(-1);
  TORCH_CHECK(width >= 1 && width <= kMaxNormWidth,
              "t2r: ",
              op,
              ": x has width ",
              width,
              ", allowed: 1 to ",
              kMaxNormWidth);
  if (delta.has_value()) check_other(*delta, op, "delta", x.sizes(), x.scalar_type(), x);
  TORCH_CHECK(weight.scalar_type() == x.scalar_type() || weight.scalar_type() == at::kFloat,
              "t2r: ",
              op,
              ": weight has dtype ",
              weight.scalar_type(),
              ", allowed: ",
              x.scalar_type(),
              ", ",
              at::kFloat);
  check_other(weight, op, "weight", {width}, weight.scalar_type(), x);
  if (bias.has_value()) check_other(*bias, op, "bias", {width}, weight.scalar_type(), x);
  TORCH_CHECK(eps >= 0, "t2r: ", op, ": eps is ", eps, ", allowed: not negative");
}

class AddNorm : public torch::autograd::Function<AddNorm> {
 public:
  static variable_list forward(AutogradContext* ctx,
                               const Tensor& x,
                               const OptionalTensor& delta,
                               const Tensor& weight,
                               const OptionalTensor& bias,
                               double eps) {
    const c10::cuda::CUDAGuard guard(x.device());
    require_shared_memory(
        kernels::cuda::norm_backward_bytes(static_cast<int>(x.size(-1)), bias.has_value()), "norm");
    const int64_t width = x.size(-1), rows = x.numel() / width;
    const Tensor sum = delta.has_value() ? at::empty_like(x) : x, y = at::empty_like(x);
    const Tensor inverse_std = at::empty({rows}, x.options().dtype(at::kFloat));
    const Tensor mean = bias.has_value() ? at::empty_like(inverse_std) : Tensor();
    NormForward a;
    a.rows = rows;
    a.width = static_cast<int>(width);
    a.eps = static_cast<float>(eps);
    a.bf16_rows = x.scalar_type() == at::kBFloat16;
    a.bf16_weight = weight.scalar_type() == at::kBFloat16;
    a.x = pointer<void>(x);
    a.weight = pointer<void>(weight);
    if (bias.has_value()) a.bias = pointer<void>(*bias);
    if (delta.has_value()) {
      a.delta = pointer<void>(*delta);
      a.sum = mutable_pointer<void>(sum);
    }
    a.y = mutable_pointer<void>(y);
    a.mean = mutable_pointer<float>(mean);
    a.inverse_std = mutable_pointer<float>(inverse_std);
    if (rows > 0) {
      check_launch(kernels::cuda::norm_forward(
                       a, current_device().multiprocessors, c10::cuda::getCurrentCUDAStream()),
                   "the norm kernel");
    }
    ctx->set_materialize_grads(false);
    ctx->save_for_backward({sum, weight, inverse_std, mean});
    ctx->saved_data["has_delta"] = delta.has_value();
    return {sum, y};
  }

  static variable_list backward(AutogradContext* ctx, const variable_list& gradients) {
    const bool has_delta = ctx->saved_data["has_delta"].toBool();
    const auto for_inputs =
        [&](const Tensor& x, const Tensor& weight, const Tensor& bias) -> variable_list {
      return {x, has_delta ? x : Tensor(), weight, bias, Tensor()};
    };
    if (!gradients[1].defined()) return for_inputs(gradients[0], Tensor(), Tensor());
    const auto saved = ctx->get_saved_variables();
    const Tensor &sum = saved[0], &weight = saved[1], &inverse_std = saved[2], &mean = saved[3];
    const c10::cuda::CUDAGuard guard(sum.device());
    const Tensor grad_sum = gradients[0].defined() ? gradients[0].contiguous() : Tensor(),
                 grad_y = gradients[1].contiguous();
    const Tensor grad_x = at::empty_like(sum);
    const Tensor grad_weight = at::empty_like(weight),
                 grad_bias = mean.defined() ? at::empty_like(weight) : Tensor();
    NormBackward a;
    a.width = static_cast<int>(sum.size(-1));
    a.rows = sum.numel() / a.width;
    a.layer_norm = mean.defined();
    a.bf16_rows = sum.scalar_type() == at::kBFloat16;
    a.bf16_weight = weight.scalar_type() == at::kBFloat16;
    a.sum = pointer<void>(sum);
    a.weight = pointer<void>(weight);
    a.mean = pointer<float>(mean);
    a.inverse_std = pointer<float>(inverse_std);
    a.grad_sum = pointer<void>(grad_sum);
    a.grad_y = pointer<void>(grad_y);
    a.grad_x = mutable_pointer<void>(grad_x);
    a.grad_weight = mutable_pointer<void>(grad_weight);
    a.grad_bias = mutable_pointer<void>(grad_bias);
    if (a.rows == 0) {
      grad_weight.zero_();
      if (grad_bias.defined()) grad_bias.zero_();
      return for_inputs(grad_x, grad_weight, grad_bias);
    }
    a.blocks = kernels::cuda::norm_backward_blocks(a, current_device().multiprocessors);
    const Tensor partial =
        at::empty({a.layer_norm ? 2 : 1, a.blocks, a.width}, inverse_std.options());
    a.partial = mutable_pointer<float>(partial);
    check_launch(kernels::cuda::norm_backward(a, c10::cuda::getCurrentCUDAStream()),
                 "the norm's backward kernels");
    return for_inputs(grad_x, grad_weight, grad_bias);
  }
};

}  // namespace

std::tuple<Tensor, Tensor> add_norm(const Tensor& x,
                                    const OptionalTensor& delta,
                                    const Tensor& weight,
                                    const OptionalTensor& bias,
                                    double eps) {
  check_norm("add_norm", x, delta, weight, bias, eps);
  const variable_list out =
      AddNorm::apply(x.contiguous(), contiguous(delta), weight.contiguous(), contiguous(bias), eps);
  return {out[0], out[1]};
}

Tensor norm(const Tensor& x, const Tensor& weight, const OptionalTensor& bias, double eps) {
  check_norm("norm", x, std::nullopt, weight, bias, eps);
  return AddNorm::apply(
      x.contiguous(), OptionalTensor(), weight.contiguous(), contiguous(bias), eps)[1];
}

}  // namespace t2r::ops
