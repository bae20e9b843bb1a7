#include "model/fused_ops.h"

#include <ATen/Parallel.h>
#include <torch/csrc/autograd/custom_function.h>

#include <algorithm>

#include "base/error.h"
#include "model/gpu_ops.h"
#include "model/kernels/cpu/pointwise_cpu.h"

namespace t2r::model {
namespace {

using torch::Tensor;
using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

constexpr int64_t kRowGrain = 16;  // rows per parallel task

void check_cpu_float(const Tensor& x, const char* op, const char* name) {
  if (!x.device().is_cpu() ||
      (x.scalar_type() != torch::kFloat32 && x.scalar_type() != torch::kFloat64)) {
    throw ContractError(concat(op,
                               ": ",
                               name,
                               " is ",
                               x.scalar_type(),
                               " on ",
                               x.device().str(),
                               ", allowed: float32 or float64 on cpu"));
  }
}

// The member of PointwiseKernels for T.
template <class T, class Float, class Double>
auto select(Float float_kernel, Double double_kernel) {
  if constexpr (std::is_same_v<T, float>) {
    return float_kernel;
  } else {
    return double_kernel;
  }
}

class RmsNorm : public torch::autograd::Function<RmsNorm> {
 public:
  static Tensor forward(AutogradContext* ctx,
                        const Tensor& x_in,
                        const Tensor& weight_in,
                        double eps) {
    const Tensor x = x_in.contiguous(), weight = weight_in.contiguous();
    const int64_t width = x.size(-1), rows = x.numel() / width;
    require(weight.dim() == 1 && weight.size(0) == width, "rms_norm: weight must be [width of x]");
    const Tensor y = torch::empty_like(x), inverse_rms = torch::empty({rows}, x.options());
    AT_DISPATCH_FLOATING_TYPES(x.scalar_type(), "rms_norm", [&] {
      const kernels::RmsNormForward<scalar_t> args{x.data_ptr<scalar_t>(),
                                                   weight.data_ptr<scalar_t>(),
                                                   y.data_ptr<scalar_t>(),
                                                   inverse_rms.data_ptr<scalar_t>(),
                                                   width,
                                                   eps};
      const auto& table = kernels::pointwise_kernels();
      const auto kernel = select<scalar_t>(table.rms_norm_f32, table.rms_norm_f64);
      at::parallel_for(
          0, rows, kRowGrain, [&](int64_t begin, int64_t end) { kernel(args, begin, end); });
    });
    ctx->save_for_backward({x, weight, inverse_rms});
    return y;
  }

  static variable_list backward(AutogradContext* ctx, const variable_list& gradients) {
    const auto saved = ctx->get_saved_variables();
    const Tensor &x = saved[0], &weight = saved[1], grad_y = gradients[0].contiguous();
    const int64_t width = x.size(-1), rows = x.numel() / width;
    // Partial sums by fixed blocks of rows, so that the result does not depend on the number of
    // threads.
    const int64_t block = std::max<int64_t>(kRowGrain, (rows + 31) / 32),
                  num_blocks = (rows + block - 1) / block;
    const Tensor grad_x = torch::empty_like(x),
                 partial = torch::zeros({num_blocks, width}, x.options());
    AT_DISPATCH_FLOATING_TYPES(x.scalar_type(), "rms_norm_backward", [&] {
      const auto& table = kernels::pointwise_kernels();
      const auto kernel =
          select<scalar_t>(table.rms_norm_backward_f32, table.rms_norm_backward_f64);
      at::parallel_for(0, num_blocks, 1, [&](int64_t begin, int64_t end) {
        for (int64_t i = begin; i < end; ++i) {
          const kernels::RmsNormBackward<scalar_t> args{x.data_ptr<scalar_t>(),
                                                        weight.data_ptr<scalar_t>(),
                                                        saved[2].data_ptr<scalar_t>(),
                                                        grad_y.data_ptr<scalar_t>(),
                                                        grad_x.data_ptr<scalar_t>(),
                                                        partial.data_ptr<scalar_t>() + i * width,
                                                        width};
          kernel(args, i * block, std::min(rows, (i + 1) * block));
        }
      });
    });
    return {grad_x, partial.sum(0), Tensor()};
  }
};

class SwiGlu : public torch::autograd::Function<SwiGlu> {
 public:
  static Tensor forward(AutogradContext* ctx, const Tensor& gate_up_in) {
    const Tensor gate_up = gate_up_in.contiguous();
    const int64_t width = gate_up.size(-1) / 2;
    std::vector<int64_t> sizes = gate_up.sizes().vec();
    sizes.back() = width;
    const Tensor y = torch::empty(sizes, gate_up.options());
    AT_DISPATCH_FLOATING_TYPES(gate_up.scalar_type(), "swiglu", [&] {
      const auto& table = kernels::pointwise_kernels();
      const auto kernel = select<scalar_t>(table.swiglu_f32, table.swiglu_f64);
      const scalar_t* in = gate_up.data_ptr<scalar_t>();
      scalar_t* out = y.data_ptr<scalar_t>();
      at::parallel_for(0, y.numel() / width, kRowGrain, [&](int64_t begin, int64_t end) {
        for (int64_t row = begin; row < end; ++row) {
          kernel({.gate = in + 2 * row * width,
                  .up = in + (2 * row + 1) * width,
                  .y = out + row * width},
                 0,
                 width);
        }
      });
    });
    ctx->save_for_backward({gate_up});
    return y;
  }

  static variable_list backward(AutogradContext* ctx, const variable_list& gradients) {
    const Tensor gate_up = ctx->get_saved_variables()[0], grad_y = gradients[0].contiguous();
    const int64_t width = gate_up.size(-1) / 2;
    const Tensor grad = torch::empty_like(gate_up);
    AT_DISPATCH_FLOATING_TYPES(gate_up.scalar_type(), "swiglu_backward", [&] {
      const auto& table = kernels::pointwise_kernels();
      const auto kernel = select<scalar_t>(table.swiglu_backward_f32, table.swiglu_backward_f64);
      const scalar_t *in = gate_up.data_ptr<scalar_t>(), *dy = grad_y.data_ptr<scalar_t>();
      scalar_t* out = grad.data_ptr<scalar_t>();
      at::parallel_for(0, grad_y.numel() / width, kRowGrain, [&](int64_t begin, int64_t end) {
        for (int64_t row = begin; row < end; ++row) {
          const int64_t gate = 2 * row * width, up = gate + width;
          kernel({.gate = in + gate,
                  .up = in + up,
                  .grad_y = dy + row * width,
                  .grad_gate = out + gate,
                  .grad_up = out + up},
                 0,
                 width);
        }
      });
    });
    return {grad};
  }
};

Tensor rotated(const Tensor& x_BTHd, int64_t num_heads, const Tensor& cosine, const Tensor& sine) {
  const int64_t length = x_BTHd.size(1), heads = x_BTHd.size(2), dim = x_BTHd.size(3);
  const Tensor out = torch::empty_like(x_BTHd, torch::MemoryFormat::Contiguous);
  AT_DISPATCH_FLOATING_TYPES(x_BTHd.scalar_type(), "rotate_heads", [&] {
    const auto& table = kernels::pointwise_kernels();
    const auto kernel = select<scalar_t>(table.rotate_f32, table.rotate_f64);
    const scalar_t* in = x_BTHd.data_ptr<scalar_t>();
    const scalar_t *c = cosine.data_ptr<scalar_t>(), *s = sine.data_ptr<scalar_t>();
    scalar_t* result = out.data_ptr<scalar_t>();
    at::parallel_for(0, x_BTHd.size(0) * length, kRowGrain, [&](int64_t begin, int64_t end) {
      for (int64_t row = begin; row < end; ++row) {
        const int64_t t = row % length, start = row * heads * dim;
        kernel({in + start,
                result + start,
                c + t * dim / 2,
                s + t * dim / 2,
                num_heads,
                dim / 2,
                dim,
                dim});
        std::copy(in + start + num_heads * dim,
                  in + start + heads * dim,
                  result + start + num_heads * dim);
      }
    });
  });
  return out;
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
    return rotated(x.contiguous(), num_heads, cosine.contiguous(), sine.contiguous());
  }

  static variable_list backward(AutogradContext* ctx, const variable_list& gradients) {
    const auto saved = ctx->get_saved_variables();
    const Tensor grad = rotated(gradients[0].contiguous(),
                                ctx->saved_data["num_heads"].toInt(),
                                saved[0].contiguous(),
                                saved[1].neg());
    return {grad, Tensor(), Tensor(), Tensor()};
  }
};

}  // namespace

Tensor rms_norm(const Tensor& x, const Tensor& weight, double eps) {
  if (x.is_cuda()) return gpu::norm(x, weight, Tensor(), eps);
  check_cpu_float(x, "rms_norm", "x");
  return RmsNorm::apply(x, weight, eps);
}

Tensor swiglu(const Tensor& gate_up) {
  if (gate_up.is_cuda()) return gpu::swiglu(gate_up);
  check_cpu_float(gate_up, "swiglu", "gate_up");
  require(gate_up.size(-1) % 2 == 0, "swiglu: the last dimension must be even");
  return SwiGlu::apply(gate_up);
}

Tensor rotate_heads(const Tensor& x_BTHd,
                    int64_t num_heads,
                    const Tensor& cosine_Td,
                    const Tensor& sine_Td) {
  if (x_BTHd.is_cuda()) return gpu::rotate_heads(x_BTHd, num_heads, cosine_Td, sine_Td);
  check_cpu_float(x_BTHd, "rotate_heads", "x");
  require(x_BTHd.dim() == 4 && num_heads <= x_BTHd.size(2), "rotate_heads: x must be [B, T, H, d]");
  require(cosine_Td.size(0) == x_BTHd.size(1) && cosine_Td.size(1) * 2 == x_BTHd.size(3),
          "rotate_heads: cosine [T, d/2]");
  return RotateHeads::apply(x_BTHd, num_heads, cosine_Td, sine_Td);
}

}  // namespace t2r::model
