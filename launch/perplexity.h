#pragma once

#include <cstdint>

#include "data/corpus.h"
#include "dist/communicator.h"
#include "model/decoder_lm.h"

namespace t2r::launch {

/// How a corpus is cut for scoring: windows of `context` tokens that move by `scored`, the last
/// `scored` targets of each counting (all of them in the first window). scored = context: windows
/// side by side.
struct PerplexityProtocol {
  int64_t context = 512;
  int64_t scored = 512;
  int64_t batch_size = 8;  ///< windows at once
  int64_t max_tokens = 0;  ///< scored tokens at most; 0: all

  /// @throws ConfigError
  void validate() const;
};

struct PerplexityResult {
  double loss_sum = 0.0;   ///< nats
  int64_t num_tokens = 0;  ///< scored

  double loss() const { return loss_sum / static_cast<double>(num_tokens); }
};

/// Scores a corpus; windows are shared out over the ranks. Collective: every rank, same order.
PerplexityResult score_corpus(const model::DecoderLM& model,
                              const data::Corpus& corpus,
                              const PerplexityProtocol& protocol,
                              dist::Communicator& communicator);

}  // namespace t2r::launch
