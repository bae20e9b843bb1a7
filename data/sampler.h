#pragma once

#include <cstdint>
#include <vector>

namespace t2r::data {

/// A pseudo-random order of [0, size) in O(1) memory: a bijection, computed one value at a time.
///
/// A balanced Feistel network of six rounds permutes [0, 4^h) with 4^h >= size; values outside the
/// range are sent through it again until they fall inside (cycle walking), fewer than four times on
/// average for sizes above 16. Source: Luby and Rackoff 1988 (Feistel); Black and Rogaway 2002
/// (cycle walking)
class Permutation {
 public:
  /// @throws ContractError  if size < 1
  Permutation(int64_t size, uint64_t seed);

  /// Value at `position`. @throws ContractError  if position is outside [0, size)
  int64_t operator()(int64_t position) const;

 private:
  uint64_t encrypt(uint64_t value) const;

  int64_t size_;
  uint64_t seed_;
  int half_bits_;
};

/// The order in which a run sees the windows of a corpus: a pure function of (seed, sample index).
///
/// Window w covers tokens [w T, w T + T]: T inputs and, shifted by one, T targets; windows do not
/// share inputs. Sample n of a run is in epoch n / num_windows and is window Permutation(n %
/// num_windows), keyed by the run's seed and the epoch. Any world size sees the same order, and the
/// only state of a run is the index of its next sample.
class Sampler {
 public:
  /// @param num_tokens     tokens in the corpus
  /// @param window_length  T, tokens
  /// @throws ConfigError  if T < 1 or the corpus is shorter than T + 1 tokens
  Sampler(int64_t num_tokens, int64_t window_length, uint64_t run_seed);

  int64_t num_windows() const { return num_windows_; }
  int64_t window_length() const { return window_length_; }
  int64_t epoch(int64_t sample) const { return sample / num_windows_; }

  /// Window of sample `sample` >= 0 of the run.
  int64_t window(int64_t sample) const;

  /// First token of that window; T + 1 tokens from there on are in the corpus.
  int64_t first_token(int64_t sample) const { return window(sample) * window_length_; }

 private:
  int64_t window_length_;
  int64_t num_windows_;
  uint64_t run_seed_;
};

/// Samples [first, first + count) of a run.
struct SampleRange {
  int64_t first = 0;
  int64_t count = 0;

  bool operator==(const SampleRange&) const = default;
};

/// Who computes which samples of a step.
///
/// The step at cursor c takes samples [c, c + global_batch) of the run; the next one starts behind
/// them. Rank r of W gets the r-th of W contiguous shares, whose sizes differ by one at most, and
/// cuts it into pieces of `micro_batch` samples, of which the last may be smaller. Ranks may have a
/// different number of pieces: collectives belong at the end of a step, not of a piece.
struct BatchPlan {
  int64_t global_batch = 1;  // sequences in a step, over all ranks
  int64_t micro_batch = 1;   // sequences in one piece
  int rank = 0;
  int world = 1;

  /// @throws ConfigError    if a batch size is below 1, or global_batch < world: a rank without
  /// samples
  /// @throws ContractError  if rank is outside [0, world)
  void check() const;

  /// This rank's share of the step at `cursor`.
  SampleRange share(int64_t cursor) const;

  /// The share in pieces, in order.
  std::vector<SampleRange> micro_batches(int64_t cursor) const;
};

}  // namespace t2r::data
