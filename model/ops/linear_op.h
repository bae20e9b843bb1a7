#pragma once

#include <ATen/core/Tensor.h>

#include <optional>

namespace t2r::ops {

using at::Tensor;

/// A projection's parameters, as model::Linear has them.
struct Projection {
  Tensor weight;               ///< [out, in] or, input major, [in, out]
  std::optional<Tensor> bias;  ///< [out]
  bool input_major = false;

  /// The weight as [in, out], a view.
  Tensor in_by_out() const { return input_major ? weight : weight.t(); }
  int64_t inputs() const { return weight.size(input_major ? 0 : 1); }
  int64_t outputs() const { return weight.size(input_major ? 1 : 0); }
};

/// y = x W + b on a GPU, differentiable in x, W and b. One call of cuBLASLt forward and one each
/// for the gradients of x and of W; only gradients that are asked for are computed. What cuBLASLt
/// does not fuse for a shape is done in several steps. Runs on the current stream, can be captured
/// in a CUDA graph, is deterministic. Registered as torch.ops.t2r.linear.
/// @param x  [.., in], bfloat16 or float32, as weight and bias
/// @return   [.., out], like x
/// @throws c10::Error  naming argument, value and what is allowed, if anything does not fit
Tensor linear(const Tensor& x, const Projection& projection);

/// @throws c10::Error  unless device, dtype and shape of the projection, under the given names, fit
/// those of x; not x's last size
void check_projection(const Tensor& x,
                      const Projection& projection,
                      const char* weight_name,
                      const char* bias_name);

/// [.., columns] as [N, columns].
inline Tensor as_rows(const Tensor& x) {
  return x.reshape({-1, x.size(-1)});
}

/// Memory for a projection of x to `outputs` columns.
Tensor empty_projected(const Tensor& x, int64_t outputs);

/// The gradients of x W + b for a gradient of [N, out]; undefined where not wanted.
struct ProjectionGradients {
  Tensor weight, bias;
};
ProjectionGradients projection_gradients(
    const Tensor& x_NI, const Tensor& grad_NO, bool input_major, bool want_weight, bool want_bias);

/// d_x = grad W^T: [N, in].
Tensor input_gradient(const Tensor& grad_NO, const Tensor& weight, bool input_major);

}  // namespace t2r::ops
