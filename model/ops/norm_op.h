#pragma once

#include <ATen/core/Tensor.h>

#include <optional>
#include <tuple>

namespace t2r::ops {

using at::Tensor;

/// The residual sum and the normalisation behind it in one kernel: sum = x + delta in x's dtype, y
/// = LayerNorm(sum) weight + bias, or without a bias RMSNorm(sum) weight. Differentiable in x,
/// delta (one gradient for both, made in one pass from those of sum and y), weight and bias. Runs
/// on the current stream and can be captured in a CUDA graph. Deterministic. Registered as
/// torch.ops.t2r.add_norm.
/// @param x       [.., width], bfloat16 or float32; width is 1 to 16384 (LayerNorm on GPUs with 99
/// KB of shared memory: to 12656)
/// @param delta   like x; absent: sum is x itself, no copy
/// @param weight  [width], x's dtype or float32; the gradient has its dtype
/// @param bias    like weight
/// @throws c10::Error  naming argument, value and what is allowed; nothing has been launched
std::tuple<Tensor, Tensor> add_norm(const Tensor& x,
                                    const std::optional<Tensor>& delta,
                                    const Tensor& weight,
                                    const std::optional<Tensor>& bias,
                                    double eps);

/// The same without a residual sum: y alone. Registered as torch.ops.t2r.norm.
Tensor norm(const Tensor& x, const Tensor& weight, const std::optional<Tensor>& bias, double eps);

}  // namespace t2r::ops
