#pragma once

#include <torch/types.h>

#include <functional>
#include <vector>

#include "model/search/decode_loop.h"
#include "model/search/sampling.h"

namespace t2r::model {

struct GenerationResult {
  torch::Tensor
      tokens_BT;  ///< int64, prompt and continuation; after an end token the row repeats it
  double prompt_seconds = 0.0;
  double decode_seconds = 0.0;  ///< of the tokens after the second, with which a GPU sets itself up
  int64_t num_decoded = 0;      ///< steps in decode_seconds
  int64_t state_bytes = 0;      ///< at the end, all rows and layers
};

/// Continues each row of a prompt by up to `max_new_tokens`, one token per step. Stops early when
/// every row has produced one of `end_tokens`, or `on_tokens` says so. A seed means the same on
/// every device (model/search/sampling.h); where devices round logits differently, texts may part.
///
/// @param prompt_BT  int64, at least one token
/// @param on_tokens  called with each step's tokens [B] as soon as they are known; returns whether
///                   to go on; may be empty
/// @throws NumericError  if nothing can be drawn from the logits
GenerationResult generate(DecodeLoop& loop,
                          const torch::Tensor& prompt_BT,
                          int64_t max_new_tokens,
                          const std::vector<int64_t>& end_tokens,
                          const SamplingOptions& options,
                          const std::function<bool(const torch::Tensor&)>& on_tokens = {});

}  // namespace t2r::model
