#include "data/sampler.h"

#include <algorithm>
#include <bit>

#include "base/error.h"
#include "base/seed.h"

namespace t2r::data {
namespace {

constexpr int kNumRounds = 6;

// Two-bit and four-bit networks reach few of the permutations of their range; walking a cycle of 64
// values costs nothing worth saving.
constexpr int kMinHalfBits = 3;

}  // namespace

Permutation::Permutation(int64_t size, uint64_t seed) : size_(size), seed_(seed) {
  require(size >= 1, concat("Permutation: size is ", size, ", must be positive"));
  const int bits = std::bit_width(static_cast<uint64_t>(size - 1));
  half_bits_ = std::max((bits + 1) / 2, kMinHalfBits);
}

uint64_t Permutation::encrypt(uint64_t value) const {
  const uint64_t mask = (uint64_t{1} << half_bits_) - 1;
  uint64_t left = value >> half_bits_;
  uint64_t right = value & mask;
  for (uint64_t round = 0; round < kNumRounds; ++round) {
    // The round number sits above all bits of `right` (at most 32), so that no two inputs coincide.
    const uint64_t mixed = mix64(seed_ ^ mix64(right | (round + 1) << 40));
    left ^= mixed & mask;
    std::swap(left, right);
  }
  return left << half_bits_ | right;
}

int64_t Permutation::operator()(int64_t position) const {
  require(position >= 0 && position < size_,
          concat("Permutation: position ", position, " is outside [0, ", size_, ")"));
  uint64_t value = static_cast<uint64_t>(position);
  do {
    value = encrypt(value);
  } while (value >= static_cast<uint64_t>(size_));
  return static_cast<int64_t>(value);
}

Sampler::Sampler(int64_t num_tokens, int64_t window_length, uint64_t run_seed)
    : window_length_(window_length), run_seed_(run_seed) {
  if (window_length < 1) {
    throw ConfigError(concat("window length is ", window_length, " tokens, must be at least 1"));
  }
  num_windows_ = (num_tokens - 1) / window_length;
  if (num_tokens < 1 || num_windows_ < 1) {
    throw ConfigError(concat("the corpus has ",
                             num_tokens,
                             " tokens, one window of ",
                             window_length,
                             " needs ",
                             window_length + 1,
                             ": take a shorter window or more text"));
  }
}

int64_t Sampler::window(int64_t sample) const {
  require(sample >= 0, concat("Sampler: sample ", sample, " is negative"));
  const uint64_t seed =
      derive_seed(run_seed_, SeedStream::kShuffle, {static_cast<uint64_t>(epoch(sample))});
  return Permutation(num_windows_, seed)(sample % num_windows_);
}

void BatchPlan::check() const {
  require(world >= 1 && rank >= 0 && rank < world,
          concat("BatchPlan: rank ", rank, " is outside [0, ", world, ")"));
  if (micro_batch < 1) {
    throw ConfigError(concat("micro_batch is ", micro_batch, ", must be at least 1"));
  }
  if (global_batch < world) {
    throw ConfigError(concat("global_batch is ",
                             global_batch,
                             ", must be at least ",
                             world,
                             ": one sequence for each rank"));
  }
}

SampleRange BatchPlan::share(int64_t cursor) const {
  check();
  const int64_t base = global_batch / world;
  const int64_t num_larger = global_batch % world;
  const int64_t first = rank * base + std::min<int64_t>(rank, num_larger);
  return {cursor + first, base + (rank < num_larger ? 1 : 0)};
}

std::vector<SampleRange> BatchPlan::micro_batches(int64_t cursor) const {
  const SampleRange all = share(cursor);
  std::vector<SampleRange> pieces;
  for (int64_t done = 0; done < all.count; done += micro_batch) {
    pieces.push_back({all.first + done, std::min(micro_batch, all.count - done)});
  }
  return pieces;
}

}  // namespace t2r::data
