#pragma once

#include <ATen/core/Tensor.h>

#include "model/ops/linear_op.h"

namespace t2r::ops {

/// y = gelu_tanh(x W1 + b1) W2 + b2 on a GPU, differentiable in all five: GPT-2's feed-forward
/// part.
///
/// In bfloat16 two calls of cuBLASLt forward and four backward: bias and gelu are the first
/// product's epilogue, gelu's gradient and that of b1 are the epilogue of the product that makes
/// the gradient of the inner activation, and that of b2 comes with the second weight's. Saved are
/// x, x W1 + b1 and the activation. The activation could be computed again from x W1 + b1, at 4
/// bytes an element of traffic in the backward; as it has been written anyway, for the second
/// product, to keep it costs 2 bytes an element of memory and no time (0.4 GB a layer of GPT-2
/// small for 65536 tokens). float32 is computed by PyTorch's operations, in the order of the CPU's
/// model. Runs on the current stream, can be captured in a CUDA graph, is deterministic. Registered
/// as torch.ops.t2r.mlp_gelu.
/// @param x   [.., in], bfloat16 or float32, as all parameters
/// @return    [.., out], like x
/// @throws c10::Error  naming argument, value and what is allowed, if anything does not fit
Tensor mlp_gelu(const Tensor& x, const Projection& up, const Projection& down);

}  // namespace t2r::ops
