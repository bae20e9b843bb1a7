#include "model/ops/loss_op.h"

#include <ATen/Functions.h>
#include <ATen/core/grad_mode.h>
#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>
#include <torch/csrc/autograd/custom_function.h>

#include <algorithm>

#include "model/kernels/cuda/pointwise/cross_entropy.h"
#include "model/ops/matmul_lt.h"
#include "model/ops/op_support.h"
#include "model/ops/training_inputs.h"

namespace t2r::ops {
namespace {

using kernels::cuda::CrossEntropy;
using kernels::cuda::Scale;
using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

constexpr int64_t kLogitsBytes = int64_t{512} << 20;  // held at a time, about
constexpr int64_t kRowsMultiple = 256;                // whole tiles of the matrix products

struct Pass {
  Tensor losses, grad_x, grad_weight;  // grad_weight is float32; undefined ones were not asked for
};

/// Chunks of one size, so that one algorithm serves all products of a kind.
int64_t default_chunk_rows(int64_t num_rows, int64_t row_bytes) {
  const int64_t chunks = std::max<int64_t>(1, num_rows * row_bytes / kLogitsBytes),
                rows = (num_rows + chunks - 1) / chunks;
  return (rows + kRowsMultiple - 1) / kRowsMultiple * kRowsMultiple;
}

/// `teacher` without tensors: none.
Pass run(const Tensor& x,
         const Tensor& weight,
         const Tensor& targets,
         const Teacher& teacher,
         int64_t chunk_rows,
         bool want_grad_x,
         bool want_grad_weight) {
  const c10::cuda::CUDAGuard guard(x.device());
  const at::NoGradGuard no_grad;
  const int64_t num_rows = x.size(0), vocabulary = weight.size(0),
                columns = kernels::cuda::padded_columns(vocabulary);
  const int64_t num_models = teacher.x_NE.defined() ? 2 : 1;
  const int64_t wanted =
      chunk_rows > 0 ? chunk_rows
                     : default_chunk_rows(num_rows, columns * x.element_size() * num_models);
  const int64_t step = std::min(wanted, num_rows);
  Pass pass;
  pass.losses = at::empty({num_rows}, x.options().dtype(at::kFloat));
  if (want_grad_x) pass.grad_x = at::empty_like(x);
  if (want_grad_weight) {
    const auto options = weight.options().dtype(at::kFloat);
    pass.grad_weight =
        num_rows > 0 ? at::empty(weight.sizes(), options) : at::zeros(weight.sizes(), options);
  }
  const Tensor buffer = at::empty({num_models, step, columns}, x.options());
  CrossEntropy a;
  a.columns = vocabulary;
  a.bf16_logits = x.scalar_type() == at::kBFloat16;
  a.gradient = want_grad_x || want_grad_weight;
  a.logits = mutable_pointer<void>(buffer);
  if (num_models == 2) {
    a.teacher_logits = pointer<void>(buffer[1]);
    a.teacher_share = static_cast<float>(teacher.share);
  }
  const auto shared_bytes =
      static_cast<int>(at::cuda::getCurrentDeviceProperties()->sharedMemPerBlockOptin);
  for (int64_t begin = 0; begin < num_rows; begin += step) {
    a.rows = std::min(step, num_rows - begin);
    const auto logits_of = [&](int64_t which) {
      return buffer[which].narrow(0, 0, a.rows).narrow(1, 0, vocabulary);
    };
    const Tensor logits = logits_of(0), rows = x.narrow(0, begin, a.rows);
    matmul_lt({.a = rows, .b = weight.t(), .out = logits});
    if (num_models == 2)
      matmul_lt({.a = teacher.x_NE.narrow(0, begin, a.rows),
                 .b = teacher.weight_VE.t(),
                 .out = logits_of(1)});
    a.targets = pointer<int64_t>(targets) + begin;
    a.losses = mutable_pointer<float>(pass.losses) + begin;
    check_launch(kernels::cuda::cross_entropy(a, shared_bytes, c10::cuda::getCurrentCUDAStream()),
                 "the cross-entropy kernel");
    if (want_grad_x) {
      matmul_lt({.a = logits, .b = weight, .out = pass.grad_x.narrow(0, begin, a.rows)});
    }
    if (want_grad_weight)
      matmul_lt({.a = logits.t(), .b = rows, .out = pass.grad_weight, .accumulate = begin > 0});
  }
  return pass;
}

/// gradient * *factor as `type`, in place if it has that type.
Tensor scaled(const Tensor& gradient, at::ScalarType type, const Tensor& factor) {
  const Tensor result = gradient.scalar_type() == type
                            ? gradient
                            : at::empty_like(gradient, gradient.options().dtype(type));
  Scale a;
  a.size = gradient.numel();
  a.bf16_from = gradient.scalar_type() == at::kBFloat16;
  a.bf16_to = type == at::kBFloat16;
  a.from = pointer<void>(gradient);
  a.to = mutable_pointer<void>(result);
  a.factor = pointer<double>(factor);
  check_launch(kernels::cuda::scale(a, c10::cuda::getCurrentCUDAStream()),
               "the kernel that scales gradients");
  return result;
}

class LinearCrossEntropy : public torch::autograd::Function<LinearCrossEntropy> {
 public:
  static Tensor forward(AutogradContext* ctx,
                        const Tensor& x,
                        const Tensor& weight,
                        const Tensor& targets,
                        const Teacher& teacher,
                        int64_t chunk_rows) {
    const Pass pass =
        run(x, weight, targets, teacher, chunk_rows, x.requires_grad(), weight.requires_grad());
    ctx->saved_data["grad_x"] = pass.grad_x;
    ctx->saved_data["grad_weight"] = pass.grad_weight;
    ctx->saved_data["type"] = static_cast<int64_t>(weight.scalar_type());
    return pass.losses.sum(at::kDouble);
  }

  static variable_list backward(AutogradContext* ctx, const variable_list& gradients) {
    refuse_second_derivatives("the loss of a linear head");
    TORCH_CHECK(ctx->saved_data.count("type") == 1,
                "t2r: the loss of a linear head: backward ran before, allowed: once per forward");
    const auto type = static_cast<at::ScalarType>(ctx->saved_data["type"].toInt());
    Tensor grad_x = ctx->saved_data["grad_x"].toTensor(),
           grad_weight = ctx->saved_data["grad_weight"].toTensor();
    ctx->saved_data.clear();  // the buffers are handed over
    const Tensor factor = gradients[0].contiguous();
    const c10::cuda::CUDAGuard guard(factor.device());
    if (grad_x.defined()) grad_x = scaled(grad_x, type, factor);
    if (grad_weight.defined()) grad_weight = scaled(grad_weight, type, factor);
    return {grad_x, grad_weight, Tensor(), Tensor(), Tensor()};
  }
};

void check_loss(const char* op,
                const Tensor& x,
                const Tensor& weight,
                const Tensor& targets,
                int64_t chunk_rows) {
  check_leading(x, op, "x", 2);
  TORCH_CHECK(x.dim() == 2, "t2r: ", op, ": x has ", x.dim(), " dimensions, allowed: 2");
  TORCH_CHECK(
      weight.dim() == 2, "t2r: ", op, ": weight has ", weight.dim(), " dimensions, allowed: 2");
  TORCH_CHECK(x.size(1) >= 1, "t2r: ", op, ": x has width ", x.size(1), ", allowed: at least 1");
  TORCH_CHECK(weight.size(0) >= 1 && weight.size(0) < (int64_t{1} << 30),
              "t2r: ",
              op,
              ": weight has ",
              weight.size(0),
              " rows, allowed: 1 to 2^30 - 1");
  check_other(weight, op, "weight", {weight.size(0), x.size(1)}, x.scalar_type(), x);
  check_other(targets, op, "targets", {x.size(0)}, at::kLong, x);
  TORCH_CHECK(
      chunk_rows >= 0, "t2r: ", op, ": chunk_rows is ", chunk_rows, ", allowed: not negative");
}

Tensor loss_sum(const Tensor& x,
                const Tensor& weight,
                const Tensor& targets,
                const Teacher& teacher,
                int64_t chunk_rows) {
  if (at::GradMode::is_enabled() && (x.requires_grad() || weight.requires_grad())) {
    return LinearCrossEntropy::apply(
        x.contiguous(), weight.contiguous(), targets.contiguous(), teacher, chunk_rows);
  }
  return run(x.contiguous(),
             weight.contiguous(),
             targets.contiguous(),
             teacher,
             chunk_rows,
             false,
             false)
      .losses.sum(at::kDouble);
}

}  // namespace

Tensor linear_cross_entropy_values(const Tensor& x,
                                   const Tensor& weight,
                                   const Tensor& targets,
                                   int64_t chunk_rows) {
  check_loss("linear_cross_entropy_values", x, weight, targets, chunk_rows);
  return run(x.contiguous(),
             weight.contiguous(),
             targets.contiguous(),
             {},
             chunk_rows,
             false,
             false)
      .losses;
}

Tensor linear_cross_entropy_sum(const Tensor& x,
                                const Tensor& weight,
                                const Tensor& targets,
                                int64_t chunk_rows) {
  check_loss("linear_cross_entropy_sum", x, weight, targets, chunk_rows);
  return loss_sum(x, weight, targets, {}, chunk_rows);
}

Tensor linear_distillation_sum(const Tensor& x,
                               const Tensor& weight,
                               const Tensor& targets,
                               const Teacher& teacher,
                               int64_t chunk_rows) {
  constexpr auto op = "linear_distillation_sum";
  check_loss(op, x, weight, targets, chunk_rows);
  TORCH_CHECK(teacher.x_NE.dim() == 2,
              "t2r: ",
              op,
              ": teacher_x has ",
              teacher.x_NE.dim(),
              " dimensions, allowed: 2");
  check_other(teacher.x_NE, op, "teacher_x", {x.size(0), teacher.x_NE.size(1)}, x.scalar_type(), x);
  check_other(teacher.weight_VE,
              op,
              "teacher_weight",
              {weight.size(0), teacher.x_NE.size(1)},
              x.scalar_type(),
              x);
  TORCH_CHECK(teacher.share >= 0.0 && teacher.share <= 1.0,
              "t2r: ",
              op,
              ": share is ",
              teacher.share,
              ", allowed: 0 to 1");
  return loss_sum(
      x,
      weight,
      targets,
      {teacher.x_NE.detach().contiguous(), teacher.weight_VE.detach().contiguous(), teacher.share},
      chunk_rows);
}

}  // namespace t2r::ops
