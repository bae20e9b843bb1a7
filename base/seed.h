#pragma once

#include <cstdint>
#include <initializer_list>

namespace t2r {

/// What a stream of random numbers is used for; part of its seed, so that streams never coincide.
enum class SeedStream : uint64_t { kInit = 1, kShuffle = 2, kDropout = 3, kSampling = 4 };

/// SplitMix64 finaliser: a bijection of 64-bit words with full avalanche.
/// Source: Steele, Lea, Flood 2014; constants of Vigna's splitmix64.c.
constexpr uint64_t mix64(uint64_t x) {
  x += 0x9E3779B97F4A7C15ull;
  x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9ull;
  x = (x ^ (x >> 27)) * 0x94D049BB133111EBull;
  return x ^ (x >> 31);
}

/// Seed of one stream: a pure function of the run's seed, the stream and its indices
/// (epoch, step, rank, ...), in that order.
constexpr uint64_t derive_seed(uint64_t run_seed,
                               SeedStream stream,
                               std::initializer_list<uint64_t> indices = {}) {
  uint64_t state = mix64(run_seed ^ mix64(static_cast<uint64_t>(stream)));
  for (const uint64_t index : indices) state = mix64(state ^ mix64(index));
  return state;
}

}  // namespace t2r
