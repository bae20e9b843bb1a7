#include "model/ops/step_linear_op.h"

#include <ATen/Functions.h>
#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>

#include <algorithm>

#include "model/kernels/cuda/decode/step_linear.h"
#include "model/ops/op_support.h"
#include "model/ops/training_inputs.h"

namespace t2r::ops {
namespace {

using kernels::cuda::kMaxStepInputs;
using kernels::cuda::kMaxStepRows;
using kernels::cuda::kMaxStepSize;
using kernels::cuda::StepKind;
using Activation = StepLinearInputs::Activation;

void check_inputs(const StepLinearInputs& in) {
  constexpr const char* kOp = "step_linear";
  const Tensor& x = in.x_NI;
  TORCH_CHECK(x.scalar_type() == at::kBFloat16,
              "t2r: step_linear: x has dtype ",
              x.scalar_type(),
              ", allowed: bfloat16");
  TORCH_CHECK(x.dim() == 2, "t2r: step_linear: x has ", x.dim(), " dimensions, allowed: 2");
  const int64_t rows = x.size(0), inputs = x.size(1);
  TORCH_CHECK(inputs >= 8 && inputs % 8 == 0 && inputs <= kMaxStepInputs,
              "t2r: step_linear: x has ",
              inputs,
              " columns, allowed: multiples of 8 up to ",
              kMaxStepInputs);
  const int norms = (in.norm_weight.defined() ? 1 : 0) + (in.norm_bias.defined() ? 1 : 0);
  const int64_t most_rows =
      most_step_rows(inputs, norms, in.activation == Activation::kSwiglu || in.cosine_Ph.defined());
  TORCH_CHECK(most_rows > 0,
              "t2r: step_linear: x has ",
              inputs,
              " columns, allowed: fewer, for this GPU's shared memory");
  TORCH_CHECK(rows >= 1 && rows <= most_rows,
              "t2r: step_linear: x has ",
              rows,
              " rows, allowed: 1 to ",
              most_rows,
              " of ",
              inputs,
              " columns on this GPU");
  TORCH_CHECK(in.weight_OI.dim() == 2,
              "t2r: step_linear: weight has ",
              in.weight_OI.dim(),
              " dimensions, allowed: 2");
  const int64_t height = in.weight_OI.size(0),
                outputs = in.activation == Activation::kSwiglu ? height / 2 : height;
  TORCH_CHECK(height >= 1 && height < (1 << 30) &&
                  (in.activation != Activation::kSwiglu || height % 2 == 0),
              "t2r: step_linear: weight has ",
              height,
              " rows, allowed: 1 or more, with swiglu an even number");
  const auto check = [&](const Tensor& tensor, const char* name, at::IntArrayRef want) {
    check_other(tensor, kOp, name, want, at::kBFloat16, x);
    TORCH_CHECK(
        tensor.is_contiguous() && is_aligned(tensor),
        "t2r: step_linear: ",
        name,
        " is not contiguous or not aligned, allowed: contiguous, from a multiple of 16 bytes on");
  };
  check(in.weight_OI, "weight", {height, inputs});
  if (in.bias.defined()) check(in.bias, "bias", {height});
  if (in.norm_weight.defined()) check(in.norm_weight, "norm_weight", {inputs});
  TORCH_CHECK(!in.norm_bias.defined() || in.norm_weight.defined(),
              "t2r: step_linear: norm_bias comes with norm_weight");
  if (in.norm_bias.defined()) check(in.norm_bias, "norm_bias", {inputs});
  TORCH_CHECK(in.eps >= 0, "t2r: step_linear: eps is ", in.eps, ", allowed: not negative");
  if (in.residual_NO.defined()) check(in.residual_NO, "residual", {rows, outputs});
  const bool rotates = in.cosine_Ph.defined();
  TORCH_CHECK(in.sine_Ph.defined() == rotates && in.position_1.defined() == rotates,
              "t2r: step_linear: cosine, sine and position come together");
  TORCH_CHECK((in.activation == Activation::kNone && !rotates) || !in.float_output,
              "t2r: step_linear: float_output is set, allowed: without activation and rotation");
  if (!rotates) return;
  TORCH_CHECK(in.activation == Activation::kNone,
              "t2r: step_linear: activation is set, allowed with cosine: none");
  TORCH_CHECK(in.cosine_Ph.dim() == 2 && in.cosine_Ph.size(1) >= 1,
              "t2r: step_linear: cosine has shape ",
              in.cosine_Ph.sizes(),
              ", allowed: [positions, half of a head]");
  check_other(in.cosine_Ph, kOp, "cosine", in.cosine_Ph.sizes(), at::kFloat, x);
  check_other(in.sine_Ph, kOp, "sine", in.cosine_Ph.sizes(), at::kFloat, x);
  TORCH_CHECK(in.cosine_Ph.is_contiguous() && in.sine_Ph.is_contiguous(),
              "t2r: step_linear: cosine or sine is not contiguous");
  check_other(in.position_1, kOp, "position", {1}, at::kLong, x);
  const int64_t head = 2 * in.cosine_Ph.size(1);
  TORCH_CHECK(
      outputs % head == 0 && in.rotated % head == 0 && in.rotated >= 0 && in.rotated <= outputs,
      "t2r: step_linear: rotated is ",
      in.rotated,
      " of ",
      outputs,
      " columns, allowed: both multiples of the head size ",
      head);
}

StepKind kind_of(const StepLinearInputs& in) {
  if (in.cosine_Ph.defined()) return StepKind::kRotate;
  switch (in.activation) {
    case Activation::kNone:
      return StepKind::kPlain;
    case Activation::kGelu:
      return StepKind::kGelu;
    case Activation::kSwiglu:
      return StepKind::kSwiglu;
  }
  TORCH_CHECK(false, "t2r: step_linear: activation is out of range");
}

}  // namespace

int64_t most_step_rows(int64_t inputs, int64_t norms, bool pairs) {
  if (inputs < 8 || inputs % 8 != 0 || inputs > kMaxStepInputs) return 0;
  int rows = static_cast<int>(std::min<int64_t>(kMaxStepRows, kMaxStepSize / inputs));
  const int shared_bytes = current_device().shared_bytes;
  const auto bytes_of = [&](int n) {
    return kernels::cuda::step_linear_bytes(
        n, static_cast<int>(inputs), static_cast<int>(norms), pairs);
  };
  while (rows > 0 && bytes_of(rows) > shared_bytes) --rows;
  return rows;
}

Tensor step_linear(const StepLinearInputs& in) {
  check_leading(in.x_NI, "step_linear", "x", 2);
  const c10::cuda::CUDAGuard guard(in.x_NI.device());
  check_inputs(in);
  Tensor x = in.x_NI.contiguous();
  if (!is_aligned(x)) x = x.clone();
  const kernels::cuda::Device device = current_device();
  kernels::cuda::StepLinear a;
  a.kind = kind_of(in);
  a.rows = static_cast<int>(x.size(0));
  a.inputs = static_cast<int>(x.size(1));
  a.outputs = static_cast<int>(in.weight_OI.size(0) / (a.kind == StepKind::kSwiglu ? 2 : 1));
  const Tensor out = at::empty(
      {a.rows, a.outputs},
      x.options().dtype(in.float_output ? at::kFloat : at::kBFloat16).requires_grad(false));
  a.x = pointer<void>(x);
  a.weight = pointer<void>(in.weight_OI);
  a.bias = pointer<void>(in.bias);
  a.norm_weight = pointer<void>(in.norm_weight);
  a.norm_bias = pointer<void>(in.norm_bias);
  a.eps = static_cast<float>(in.eps);
  a.residual = pointer<void>(in.residual_NO);
  if (a.kind == StepKind::kRotate) {
    a.cosine = pointer<float>(in.cosine_Ph);
    a.sine = pointer<float>(in.sine_Ph);
    a.position = pointer<int64_t>(in.position_1);
    a.table_rows = in.cosine_Ph.size(0);
    a.half = static_cast<int>(in.cosine_Ph.size(1));
    a.rotated = static_cast<int>(in.rotated);
  }
  a.out = mutable_pointer<void>(out);
  a.float_out = in.float_output;
  a.overlaps = device.hopper;
  check_launch(
      kernels::cuda::step_linear(a, device.multiprocessors, c10::cuda::getCurrentCUDAStream()),
      "the kernel of a step's projection");
  return out;
}

}  // namespace t2r::ops
