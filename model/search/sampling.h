#pragma once

#include <torch/types.h>

#include <cstdint>

namespace t2r::model {

/// How the next token is chosen. Temperature 0 is greedy: the first of the largest logits. Else it
/// is drawn as model/kernels/draw_rule.h says: a pure function of seed, row, position and the row's
/// logits, so that every device draws the same from the same logits, whatever else is in the batch.
struct SamplingOptions {
  double temperature = 0.0;
  int64_t top_k = 0;   ///< keep the k most probable tokens, and any as probable as the last; 0: all
  double top_p = 1.0;  ///< then the fewest whose probability reaches p; equal ones stay together
  uint64_t seed = 0;

  /// @throws ConfigError  naming field, value and what is allowed
  void validate() const;

  /// Of the stream of random numbers that draws.
  uint64_t stream_seed() const;
};

/// The next tokens [N], int64, on the CPU.
///
/// @param logits_NV  of any float dtype and device
/// @param position   tokens that each row has seen so far
/// @throws NumericError  if a row cannot be drawn from: a NaN, or the largest logit is not finite
torch::Tensor draw_tokens(const torch::Tensor& logits_NV,
                          int64_t position,
                          const SamplingOptions& options);

/// @throws NumericError  if one of tokens_N, on the CPU, is -1: it could not be drawn
void check_drawn(const torch::Tensor& tokens_N);

}  // namespace t2r::model
