#pragma once

#include <cstdint>
#include <optional>
#include <string>

#include "launch/options/options.h"
#include "model/search/sampling.h"

namespace t2r::launch {

/// Groups of options that commands share: what they mean, and what is allowed, is said once.

/// The sequences that a training step is made of.
struct BatchOptions {
  int64_t sequence_length = 256;
  int64_t batch_size = 16;       ///< sequences per step, over all ranks or per rank
  int64_t micro_batch_size = 0;  ///< sequences at once on a rank; 0: its whole share

  /// --batch-size counts the sequences of all ranks.
  void bind(OptionSet& options);

  /// A benchmark's: --batch-size-per-rank, so that more ranks have more to do.
  void bind_per_rank(OptionSet& options);

 private:
  void bind_sequence_length(OptionSet& options);
  void bind_micro_batch_size(OptionSet& options);
};

/// How text becomes tokens.
struct TextOptions {
  std::optional<bool> begin_of_text;  ///< empty: as the tokenizer's configuration says
  bool end_of_document = false;
  bool allow_invalid_utf8 = false;

  /// @param unit  what begins and ends with these tokens, for --help: "document"
  /// @param when  in front of the help, where a command reads text under a condition
  void bind(OptionSet& options, const std::string& unit, const std::string& when = "");

  /// Says that none of them has an effect, if `is_idle`.
  static void say_idle(const OptionSet& options, bool is_idle, const std::string& why);
};

/// The steps of a benchmark.
struct TimedSteps {
  int64_t timed = 50, untimed = 10;

  void bind(OptionSet& options);
};

/// --sequences-at-once, of commands that run a finished model.
/// @param what  they are, for --help
void bind_sequences_at_once(OptionSet& options, int64_t& count, const std::string& what);

/// The options that say how tokens are chosen, but for the seed.
void bind_sampling(OptionSet& options, model::SamplingOptions& sampling);

/// Says which of them have no effect.
void say_idle_sampling(const OptionSet& options, const model::SamplingOptions& sampling);

}  // namespace t2r::launch
