#pragma once

#include <ATen/core/Tensor.h>

namespace t2r::ops {

using at::Tensor;

/// Legend: N rows, V tokens of the vocabulary (at most 2^23), R steps that the history holds.
struct DrawTokenInputs {
  Tensor logits_NV;          ///< bfloat16 or float32
  Tensor tokens_N;           ///< int64, written
  Tensor history_RN;         ///< int64, written in row position % R
  Tensor position_1;         ///< int64, on the device, not negative
  double temperature = 0.0;  ///< 0: the first of the largest logits
  int64_t top_k = 0;   ///< keep the k largest logits, and what equals the last of them; 0: all
  double top_p = 1.0;  ///< then the largest until their probability reaches p
  uint64_t seed = 0;
};

/// The choice of each row's next token, written to the device and to a history there that is read
/// later. What is drawn is a function of the row's logits, its number, seed and position
/// (model/kernels/draw_rule.h), the same on every device. A row with a NaN, or whose largest logit
/// is not finite, gives token 0 and -1 in the history, unless the temperature is 0. One kernel.
/// Runs on the current stream, can be captured in a CUDA graph. Deterministic. Not differentiable.
/// Registered as torch.ops.t2r.draw_token.
/// @throws c10::Error  naming argument, value and what is allowed, if anything does not fit;
/// nothing has been changed
void draw_token(const DrawTokenInputs& inputs);

}  // namespace t2r::ops
