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

}  // namespace t2r::model
