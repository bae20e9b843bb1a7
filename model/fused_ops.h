#pragma once

#include <torch/types.h>

namespace t2r::model {

/// Root-mean-square normalisation of the last dimension in one pass: y = x w / sqrt(mean(x^2) +
/// eps). Differentiable in x and w. Source: Zhang & Sennrich 2019.
torch::Tensor rms_norm(const torch::Tensor& x, const torch::Tensor& weight, double eps);

/// silu(gate) * up, where gate_up holds both halves of the last dimension: [.., 2 F] -> [.., F].
/// Differentiable. Source: Shazeer 2020.
torch::Tensor swiglu(const torch::Tensor& gate_up);

/// Rotates the first `num_heads` heads of x_BTHd by position (RoPE, halves layout), the others pass
/// unchanged: queries and keys of a fused projection are turned in one pass. Differentiable in x.
///
/// @param cosine_Td, sine_Td  [T, d / 2] of the positions at hand, x's dtype
/// Source: Su et al. 2021, in the layout of transformers' rotate_half.
torch::Tensor rotate_heads(const torch::Tensor& x_BTHd,
                           int64_t num_heads,
                           const torch::Tensor& cosine_Td,
                           const torch::Tensor& sine_Td);

/// Sum over tokens of -log softmax(x W^T)[target], in nats, as a float64 scalar.
///
/// The logits exist for a few rows at a time only, and the gradients are made in the same pass: [N,
/// vocabulary] is never held. Differentiable in x and W.
///
/// @param x_ND        float32
/// @param weight_VD   float32
/// @param targets_N   int64; negative targets are left out of the sum
torch::Tensor linear_cross_entropy_sum(const torch::Tensor& x_ND,
                                       const torch::Tensor& weight_VD,
                                       const torch::Tensor& targets_N);

/// The same per token and without gradients: [N] float32, 0 where the target is negative.
torch::Tensor linear_cross_entropy_values(const torch::Tensor& x_ND,
                                          const torch::Tensor& weight_VD,
                                          const torch::Tensor& targets_N);

}  // namespace t2r::model
