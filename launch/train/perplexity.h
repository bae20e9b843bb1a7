#pragma once

#include <cstdint>
#include <functional>

#include "data/corpus.h"
#include "dist/communicator.h"
#include "model/trainable.h"

namespace t2r::launch {

/// How a corpus is cut for scoring: windows of `context` tokens that move by `scored`, the last
/// `scored` targets of each counting (all of them in the first window). scored = context: windows
/// side by side.
struct PerplexityProtocol {
  int64_t context = 512;
  int64_t scored = 512;
  int64_t batch_size = 8;  ///< windows at once
  int64_t max_tokens = 0;  ///< scored tokens at most; 0: all

  /// @throws ConfigError  if more is to be scored than a window has
  void validate() const;
};

struct PerplexityResult {
  double loss_sum = 0.0;    ///< nats
  int64_t num_tokens = 0;   ///< scored
  bool is_stopped = false;  ///< before all was scored, on a rank's request: no result

  double loss() const { return loss_sum / static_cast<double>(num_tokens); }
};

/// What is asked and told between batches; functions may be empty. Local.
struct ScoringHooks {
  std::function<bool()> is_stop_requested;  ///< on this rank; true on any ends the scoring on all
  std::function<void(int64_t done, int64_t total)> on_progress;  ///< tokens of all ranks, about
  const char* batch_option = "--sequences-at-once";  ///< makes batches smaller, if memory runs out
};

/// Scores a corpus; tokens that documents begin with (Corpus::begin_of_text) do not count. Windows
/// are shared out over the ranks. Ranks agree between batches, while they compute, so a request to
/// stop is heard at most two batches later. Collective: every rank, same order.
/// @throws Error  on every rank, if a batch fails on any
PerplexityResult score_corpus(const model::Trainable& model,
                              const data::Corpus& corpus,
                              const PerplexityProtocol& protocol,
                              dist::Communicator& communicator,
                              const ScoringHooks& hooks = {});

}  // namespace t2r::launch
