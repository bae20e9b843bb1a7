#pragma once

#include <torch/types.h>

#include <functional>
#include <vector>

#include "model/decode_loop.h"

namespace t2r::model {

/// How the next token is drawn. temperature 0 is greedy.
struct SamplingOptions {
  double temperature = 0.0;
  int64_t top_k = 0;   ///< keep the k most probable tokens; 0: all
  double top_p = 1.0;  ///< then the fewest whose probability reaches p
  uint64_t seed = 0;

  /// @throws ConfigError  naming field, value and what is allowed
  void validate() const;
};

struct GenerationResult {
  torch::Tensor
      tokens_BT;  ///< int64, prompt and continuation; after an end token the row repeats it
  double prompt_seconds = 0.0;
  double decode_seconds = 0.0;  ///< of the tokens after the second, with which a GPU sets itself up
  int64_t num_decoded = 0;      ///< steps in decode_seconds
  int64_t state_bytes = 0;      ///< at the end, all rows and layers
};

/// Continues each row of a prompt by up to `max_new_tokens`, one token per step. Stops early when
/// every row has produced one of `end_tokens`. A seed means the same on every device: tokens are
/// drawn on the CPU.
///
/// @param prompt_BT  int64, at least one token
/// @param on_tokens  called with each step's tokens [B] as soon as they are known; may be empty
GenerationResult generate(DecodeLoop& loop,
                          const torch::Tensor& prompt_BT,
                          int64_t max_new_tokens,
                          const std::vector<int64_t>& end_tokens,
                          const SamplingOptions& options,
                          const std::function<void(const torch::Tensor&)>& on_tokens = {});

}  // namespace t2r::model
