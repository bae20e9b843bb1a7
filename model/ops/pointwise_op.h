#pragma once

#include <ATen/core/Tensor.h>

namespace t2r::ops {

using at::Tensor;

/// One kernel each way for bfloat16 and float32 tensors on a GPU, in float32 arithmetic, on the
/// current stream; they can be captured in a CUDA graph and are deterministic. Registered as
/// torch.ops.t2r.swiglu and rotate_heads. All throw c10::Error naming argument, value and what is
/// allowed, with nothing launched.

/// silu(gate) up, where gate_up holds both halves of the last dimension: [.., 2 F] -> [.., F].
/// Differentiable. Source: Shazeer 2020.
Tensor swiglu(const Tensor& gate_up);

/// Rotates the first `num_heads` heads of x_BTHd by position (RoPE, halves layout), the others pass
/// unchanged. Out of place. Differentiable in x.
/// @param cosine_Td, sine_Td  [T, d / 2] of the positions at hand, float32
/// Source: Su et al. 2021, in the layout of transformers' rotate_half.
Tensor rotate_heads(const Tensor& x_BTHd,
                    int64_t num_heads,
                    const Tensor& cosine_Td,
                    const Tensor& sine_Td);

}  // namespace t2r::ops
