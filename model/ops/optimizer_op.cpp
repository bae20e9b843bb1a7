#include "model/ops/optimizer_op.h"

#include <ATen/Functions.h>
#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>

#include <algorithm>

#include "model/ops/op_support.h"

namespace t2r::ops {
namespace {

using kernels::cuda::kControlSlots;

void check_flat(const Tensor& tensor, const char* name, at::ArrayRef<at::ScalarType> allowed) {
  TORCH_CHECK(tensor.is_cuda(), "t2r: ", name, " is on ", tensor.device(), ", allowed: cuda");
  TORCH_CHECK(std::find(allowed.begin(), allowed.end(), tensor.scalar_type()) != allowed.end(),
              "t2r: ",
              name,
              " has dtype ",
              tensor.scalar_type(),
              ", allowed: ",
              allowed);
  TORCH_CHECK(tensor.dim() == 1 && tensor.is_contiguous(),
              "t2r: ",
              name,
              " has shape ",
              tensor.sizes(),
              " and strides ",
              tensor.strides(),
              ", allowed: one dimension, contiguous");
}

/// Memory of which the kernels take element i together with that of `model`.
void check_like(const Tensor& tensor,
                const char* name,
                at::ArrayRef<at::ScalarType> allowed,
                const Tensor& model,
                const char* model_name) {
  check_flat(tensor, name, allowed);
  TORCH_CHECK(tensor.device() == model.device(),
              "t2r: ",
              name,
              " is on ",
              tensor.device(),
              ", ",
              model_name,
              " is on ",
              model.device(),
              ", allowed: one device");
  TORCH_CHECK(tensor.numel() == model.numel(),
              "t2r: ",
              name,
              " has ",
              tensor.numel(),
              " elements, allowed: ",
              model.numel(),
              ", as ",
              model_name,
              " has");
}

void check_control(const Tensor& control, const Tensor& model, const char* model_name) {
  check_flat(control, "control", at::kDouble);
  TORCH_CHECK(control.numel() == kControlSlots,
              "t2r: control has ",
              control.numel(),
              " elements, allowed: ",
              kControlSlots);
  TORCH_CHECK(control.device() == model.device(),
              "t2r: control is on ",
              control.device(),
              ", ",
              model_name,
              " is on ",
              model.device(),
              ", allowed: one device");
}

void check_beta(double beta, const char* name) {
  TORCH_CHECK(
      beta >= 0.0 && beta < 1.0, "t2r: ", name, " is ", beta, ", allowed: from 0 to below 1");
}

constexpr at::ScalarType kGradientTypes[] = {at::kBFloat16, at::kFloat};

}  // namespace

Tensor make_control(const at::Device& device) {
  return at::zeros({kControlSlots}, at::TensorOptions(device).dtype(at::kDouble));
}

void gradient_norm(const Tensor& gradients, const Tensor& control, double beta1, double beta2) {
  check_flat(gradients, "gradients", kGradientTypes);
  check_control(control, gradients, "gradients");
  check_beta(beta1, "beta1");
  check_beta(beta2, "beta2");
  const c10::cuda::CUDAGuard guard(gradients.device());
  const Tensor partials =
      at::empty({kernels::cuda::kNormPartials}, control.options().requires_grad(false));
  check_launch(
      kernels::cuda::gradient_norm({.gradients = gradients.const_data_ptr(),
                                    .bf16_gradients = gradients.scalar_type() == at::kBFloat16,
                                    .count = gradients.numel(),
                                    .partials = mutable_pointer<double>(partials),
                                    .control = mutable_pointer<double>(control),
                                    .beta1 = beta1,
                                    .beta2 = beta2},
                                   c10::cuda::getCurrentCUDAStream()),
      "the norm of the gradient");
}

void adamw(const AdamWTensors& t, const AdamWSettings& settings) {
  check_flat(t.master, "master", at::kFloat);
  if (t.values.has_value()) check_like(*t.values, "values", at::kBFloat16, t.master, "master");
  check_like(t.gradients, "gradients", kGradientTypes, t.master, "master");
  check_like(t.first_moment, "first_moment", at::kFloat, t.master, "master");
  check_like(t.second_moment, "second_moment", at::kFloat, t.master, "master");
  TORCH_CHECK(t.spans.device() == t.master.device(),
              "t2r: spans is on ",
              t.spans.device(),
              ", master is on ",
              t.master.device(),
              ", allowed: one device");
  TORCH_CHECK(t.spans.scalar_type() == at::kLong,
              "t2r: spans has dtype ",
              t.spans.scalar_type(),
              ", allowed: ",
              at::kLong);
  TORCH_CHECK(t.spans.dim() == 2 && t.spans.size(1) == 3 && t.spans.is_contiguous(),
              "t2r: spans has shape ",
              t.spans.sizes(),
              " and strides ",
              t.spans.strides(),
              ", allowed: [n, 3], contiguous");
  check_control(t.control, t.master, "master");
  check_beta(settings.beta1, "beta1");
  check_beta(settings.beta2, "beta2");
  TORCH_CHECK(settings.eps > 0.0, "t2r: eps is ", settings.eps, ", allowed: positive");
  TORCH_CHECK(settings.weight_decay >= 0.0,
              "t2r: weight_decay is ",
              settings.weight_decay,
              ", allowed: not negative");
  const c10::cuda::CUDAGuard guard(t.master.device());
  check_launch(kernels::cuda::adamw(
                   {.master = mutable_pointer<float>(t.master),
                    .values = t.values.has_value() ? mutable_pointer<void>(*t.values) : nullptr,
                    .gradients = t.gradients.const_data_ptr(),
                    .bf16_gradients = t.gradients.scalar_type() == at::kBFloat16,
                    .first_moment = mutable_pointer<float>(t.first_moment),
                    .second_moment = mutable_pointer<float>(t.second_moment),
                    .count = t.master.numel(),
                    .spans = pointer<int64_t>(t.spans),
                    .num_spans = t.spans.size(0),
                    .control = pointer<double>(t.control),
                    .beta1 = settings.beta1,
                    .beta2 = settings.beta2,
                    .eps = settings.eps,
                    .weight_decay = settings.weight_decay},
                   c10::cuda::getCurrentCUDAStream()),
               "the optimizer's kernel");
}

Tensor make_spans(const std::vector<ParameterSlice>& slices, const at::Device& device) {
  std::vector<int64_t> spans;
  for (const ParameterSlice& slice : slices) {
    TORCH_CHECK(slice.offset >= 0 && slice.numel >= 0,
                "t2r: a slice has offset ",
                slice.offset,
                " and ",
                slice.numel,
                " elements, allowed: not negative");
    const int64_t flags = (slice.decays ? kernels::cuda::kSpanDecays : 0) |
                          (slice.is_map ? kernels::cuda::kSpanIsMap : 0);
    const int64_t end = slice.offset + slice.numel;
    for (int64_t begin = slice.offset; begin < end;) {
      // Cuts at multiples of 4 elements: only a slice's own ends are not whole vectors.
      const int64_t next = std::min(end, (begin + kSpanElements) / 4 * 4);
      spans.insert(spans.end(), {begin, next, flags});
      begin = next;
    }
  }
  const auto rows = static_cast<int64_t>(spans.size() / 3);
  return at::tensor(spans, at::kLong).view({rows, 3}).to(device);
}

}  // namespace t2r::ops
