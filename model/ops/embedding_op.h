#pragma once

#include <ATen/core/Tensor.h>

#include <optional>

namespace t2r::ops {

using at::Tensor;

/// out[.., t] = weight[tokens[.., t]] + position[t], in one kernel; the sum is rounded once.
/// Differentiable in weight (a dense gradient, rows of one token added in float32 in the order of
/// the batch) and position. Runs on the current stream without waiting for the device and can be
/// captured in a CUDA graph. Deterministic. Registered as torch.ops.t2r.embedding.
/// @param weight_VD    bfloat16 or float32
/// @param tokens_BT    int64, at least one dimension, the last of T tokens; one outside 0..V-1
/// gives NaN
/// @param position_TD  weight's dtype
/// @throws c10::Error  naming argument, value and what is allowed; nothing has been launched
Tensor embedding(const Tensor& weight_VD,
                 const Tensor& tokens_BT,
                 const std::optional<Tensor>& position_TD = std::nullopt);

}  // namespace t2r::ops
