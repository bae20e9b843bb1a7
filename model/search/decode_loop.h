#pragma once

#include <torch/types.h>

#include <memory>

#include "model/nets/decoder_lm.h"
#include "model/search/sampling.h"

namespace t2r::model {

/// Runs a model forward one token at a time, for every sequence of a batch at once: linear layers
/// carry their state, softmax layers a key/value cache.
class DecodeLoop {
 public:
  virtual ~DecodeLoop() = default;

  /// A new state behind prompt_BT, int64 on the CPU with T >= 1; the logits [B, V] behind it.
  /// @throws DataError    if a token is outside the vocabulary
  /// @throws ConfigError  here and below: if positions run past a learned position table
  virtual torch::Tensor begin(const torch::Tensor& prompt_BT) = 0;

  /// Goes on from a state that has seen at least one token of each of `batch` sequences.
  virtual void resume(DecoderState state, int64_t batch) = 0;

  /// The steps from here on are next()s, at most `num_steps`; the first one takes tokens_B, int64
  /// on the CPU.
  virtual void start(const torch::Tensor& tokens_B,
                     const SamplingOptions& sampling,
                     int64_t num_steps) = 0;

  /// The tokens [B] chosen behind the last ones, on the CPU. The device may be some steps ahead.
  /// @throws NumericError  if nothing can be drawn from the logits
  virtual torch::Tensor next() = 0;

  /// Of what the steps given so far have left.
  virtual int64_t state_bytes() const = 0;
};

/// The loop that calls the model's functions, on whatever device it is.
std::unique_ptr<DecodeLoop> make_decode_loop(const DecoderLM& model);

}  // namespace t2r::model
