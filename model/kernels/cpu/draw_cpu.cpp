#include "model/kernels/cpu/draw_cpu.h"

#include <array>
#include <limits>
#include <vector>

namespace t2r::kernels {
namespace {

/// The key t for which the weight of all larger keys is below `target` and that of t and all larger
/// ones is not: digit by digit, from sums of weights per digit.
///
/// @param weight_of  index of a key to its weight, a whole number
/// @param target     1 to the sum of all weights
template <class WeightOf>
uint32_t least_kept(const std::vector<uint32_t>& keys, WeightOf weight_of, uint64_t target) {
  uint64_t prefix = 0;
  for (int pass = 0; pass < kDigits; ++pass) {
    const int shift = digit_shift(pass), bits = digit_bits(pass);
    std::array<uint64_t, 1 << kDigitBits> sums{};
    for (size_t i = 0; i < keys.size(); ++i) {
      if (uint64_t{keys[i]} >> (shift + bits) != prefix) continue;
      sums[(keys[i] >> shift) & ((1U << bits) - 1)] += weight_of(i);
    }
    uint32_t digit = (1U << bits) - 1;
    for (; digit > 0 && sums[digit] < target; --digit) target -= sums[digit];
    prefix = prefix << bits | digit;
  }
  return static_cast<uint32_t>(prefix);
}

}  // namespace

int64_t draw_token(
    const float* logits, int64_t size, const DrawRule& rule, int64_t row, int64_t position) {
  std::vector<uint32_t> keys(static_cast<size_t>(size));
  for (size_t i = 0; i < keys.size(); ++i) keys[i] = ordered(logits[i]);
  const uint32_t largest_key = *std::max_element(keys.begin(), keys.end());
  if (!can_draw(largest_key)) return -1;
  const float largest = value_of(largest_key);
  const auto scaled_logit = [&](size_t i) {
    return scaled(logits[i], largest, rule.inverse_temperature);
  };

  uint32_t least = 0;
  if (rule.top_k > 0 && rule.top_k < size) {
    least = least_kept(
        keys, [](size_t) { return uint64_t{1}; }, static_cast<uint64_t>(rule.top_k));
  }
  if (rule.top_p < 1.0) {
    std::vector<uint64_t> masses(keys.size());
    uint64_t total = 0;
    for (size_t i = 0; i < keys.size(); ++i) {
      if (keys[i] >= least) masses[i] = mass_of(scaled_logit(i));
      total += masses[i];
    }
    least = least_kept(
        keys, [&](size_t i) { return masses[i]; }, mass_to_reach(rule.top_p, total));
  }

  int64_t best = 0;
  float best_score = -std::numeric_limits<float>::infinity();
  for (size_t first = 0; first < keys.size(); first += 4) {
    const size_t end = std::min(keys.size(), first + 4);
    if (std::all_of(&keys[first], &keys[0] + end, [&](uint32_t key) { return key < least; })) {
      continue;
    }
    const FourWords words =
        words_of(rule.seed, static_cast<uint32_t>(row), position, static_cast<uint32_t>(first / 4));
    for (size_t i = first; i < end; ++i) {
      if (keys[i] < least) continue;
      const float score = scaled_logit(i) + gumbel(words.word[i - first]);
      if (score > best_score) {
        best_score = score;
        best = static_cast<int64_t>(i);
      }
    }
  }
  return best;
}

}  // namespace t2r::kernels
