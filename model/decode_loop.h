#pragma once

#include <torch/types.h>

#include <memory>

#include "model/decoder_lm.h"

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

  /// Takes one more token of each sequence, int64 [B] on the CPU; the logits [B, V] behind them.
  virtual torch::Tensor step(const torch::Tensor& tokens_B) = 0;

  /// The next steps are greedy_step()s, at most `num_steps`; the first one takes tokens_B.
  virtual void start_greedy(const torch::Tensor& tokens_B, int64_t num_steps) = 0;

  /// The most probable tokens [B] behind the last ones, on the CPU. The device may be some steps
  /// ahead.
  virtual torch::Tensor greedy_step() = 0;

  /// Of what the steps given so far have left.
  virtual int64_t state_bytes() const = 0;
};

/// The loop that calls the model's functions, on whatever device it is.
std::unique_ptr<DecodeLoop> make_decode_loop(const DecoderLM& model);

}  // namespace t2r::model
