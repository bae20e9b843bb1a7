#include "model/ops/pointwise_op.h"

#include <ATen/Functions.h>
#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>
#include <torch/csrc/autograd/custom_function.h>

#include "model/kernels/cuda/pointwise/pointwise.h"
#include "model/ops/op_support.h"
#include "model/ops/training_inputs.h"

namespace t2r::ops {
namespace {

using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

bool is_bf16(const Tensor& tensor) {
  return tensor.scalar_type() == at::kBFloat16;
}

class SwiGlu : public torch::autograd::Function<SwiGlu> {
 public:
  static Tensor forward(AutogradContext* ctx, const Tensor& gate_up) {
    const c10::cuda::CUDAGuard guard(gate_up.device());
    std::vector<int64_t> sizes = gate_up.sizes().vec();
    sizes.back() /= 2;
    const Tensor y = at::empty(sizes, gate_up.options());
    kernels::cuda::Swiglu a = arguments(gate_up);
    a.y = mutable_pointer<void>(y);
    check_launch(kernels::cuda::swiglu(a, c10::cuda::getCurrentCUDAStream()), "the SwiGLU kernel");
    ctx->save_for_backward({gate_up});
    return y;
  }

  static variable_list backward(AutogradContext* ctx, const variable_list& gradients) {
    const Tensor gate_up = ctx->get_saved_variables()[0];
    const c10::cuda::CUDAGuard guard(gate_up.device());
    const Tensor grad_y = gradients[0].contiguous(), grad = at::empty_like(gate_up);
    kernels::cuda::Swiglu a = arguments(gate_up);
    a.grad_y = pointer<void>(grad_y);
    a.grad_gate_up = mutable_pointer<void>(grad);
    check_launch(kernels::cuda::swiglu(a, c10::cuda::getCurrentCUDAStream()),
                 "the SwiGLU backward kernel");
    return {grad};
  }

 private:
  static kernels::cuda::Swiglu arguments(const Tensor& gate_up) {
    kernels::cuda::Swiglu a;
    a.width = gate_up.size(-1) / 2;
    a.rows = a.width > 0 ? gate_up.numel() / (2 * a.width) : 0;
    a.is_bf16 = is_bf16(gate_up);
    a.gate_up = pointer<void>(gate_up);
    return a;
  }
};

Tensor rotated(
    const Tensor& x, int64_t num_heads, const Tensor& cosine, const Tensor& sine, bool backwards) {
  const c10::cuda::CUDAGuard guard(x.device());
  const Tensor y = at::empty_like(x);
  kernels::cuda::Rotate a;
  a.batch = x.size(0);
  a.length = x.size(1);
  a.heads = x.size(2);
  a.half = x.size(3) / 2;
  a.rotated_heads = num_heads;
  a.is_bf16 = is_bf16(x);
  a.backwards = backwards;
  a.cosine = pointer<float>(cosine);
  a.sine = pointer<float>(sine);
  a.x = pointer<void>(x);
  a.y = mutable_pointer<void>(y);
  check_launch(kernels::cuda::rotate_heads(a, c10::cuda::getCurrentCUDAStream()),
               "the kernel that rotates heads");
  return y;
}

class RotateHeads : public torch::autograd::Function<RotateHeads> {
 public:
  static Tensor forward(AutogradContext* ctx,
                        const Tensor& x,
                        int64_t num_heads,
                        const Tensor& cosine,
                        const Tensor& sine) {
    ctx->save_for_backward({cosine, sine});
    ctx->saved_data["num_heads"] = num_heads;
    return rotated(x, num_heads, cosine, sine, false);
  }

  static variable_list backward(AutogradContext* ctx, const variable_list& gradients) {
    const auto saved = ctx->get_saved_variables();
    return {rotated(gradients[0].contiguous(),
                    ctx->saved_data["num_heads"].toInt(),
                    saved[0],
                    saved[1],
                    true),
            Tensor(),
            Tensor(),
            Tensor()};
  }
};

}  // namespace

Tensor swiglu(const Tensor& gate_up) {
  check_leading(gate_up, "swiglu", "gate_up", 1);
  TORCH_CHECK(gate_up.size(-1) % 2 == 0,
              "t2r: swiglu: gate_up has width ",
              gate_up.size(-1),
              ", allowed: even");
  return SwiGlu::apply(gate_up.contiguous());
}

Tensor rotate_heads(const Tensor& x, int64_t num_heads, const Tensor& cosine, const Tensor& sine) {
  check_leading(x, "rotate_heads", "x", 4);
  TORCH_CHECK(x.dim() == 4, "t2r: rotate_heads: x has ", x.dim(), " dimensions, allowed: 4");
  TORCH_CHECK(
      x.size(3) % 2 == 0, "t2r: rotate_heads: x has head size ", x.size(3), ", allowed: even");
  TORCH_CHECK(num_heads >= 0 && num_heads <= x.size(2),
              "t2r: rotate_heads: num_heads is ",
              num_heads,
              ", allowed: 0 to ",
              x.size(2));
  check_other(cosine, "rotate_heads", "cosine", {x.size(1), x.size(3) / 2}, at::kFloat, x);
  check_other(sine, "rotate_heads", "sine", {x.size(1), x.size(3) / 2}, at::kFloat, x);
  return RotateHeads::apply(x.contiguous(), num_heads, cosine.contiguous(), sine.contiguous());
}

}  // namespace t2r::ops
