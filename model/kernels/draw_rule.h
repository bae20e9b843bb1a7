#pragma once

#include <algorithm>
#include <bit>
#include <cstdint>

/// What a drawn token is, for the CPU and the GPUs alike. No LibTorch, no CUDA.
///
/// Of a row of logits l, the kept tokens are
///   top-k: those with l >= the k-th largest; equal logits stay together;
///   then top-p: those in front of which (that is, with a larger l) the mass is below p times the
///   mass of all that top-k has kept; the most probable one always stays, equal logits together.
/// The drawn one is the first kept token with the largest (l - max l) / temperature + g, where g is
/// Gumbel noise, a pure function of (seed, row, position, token). Its probability is
/// exp(l / temperature), normalised over the kept ones (the Gumbel-max trick).
///
/// Every function here gives the same bits everywhere: float32 additions and products one by one,
/// rounded to nearest. Files that include this are compiled without contraction to fused
/// multiply-adds (-ffp-contract=off, --fmad=false). Logarithm and exponential are Cephes' (Moshier
/// 1989), to about 2^-23.
namespace t2r::kernels {

/// Which tokens are kept, and the noise.
struct DrawRule {
  float inverse_temperature = 0.0F;  ///< 0: greedy
  int64_t top_k = 0;                 ///< 0: all
  double top_p = 1.0;                ///< above 0; 1: all
  uint64_t seed = 0;

  /// @param temperature  0: greedy; others are kept within 1e-30 to 1e30, so that differences of
  /// finite logits are never turned into a product of zero and infinity
  static constexpr DrawRule make(double temperature, int64_t top_k, double top_p, uint64_t seed) {
    const double inverse =
        temperature > 0.0 ? 1.0 / std::min(std::max(temperature, 1e-30), 1e30) : 0.0;
    return {static_cast<float>(inverse), top_k, top_p, seed};
  }
};

/// A number whose order is that of the float: NaN above all, -0 equal to 0; never 0.
constexpr uint32_t ordered(float x) {
  if (x != x) return 0xFFFFFFFFU;
  const uint32_t bits = std::bit_cast<uint32_t>(x + 0.0F);
  return (bits & 0x80000000U) != 0 ? ~bits : bits | 0x80000000U;
}

inline constexpr uint32_t kOrderedInfinity = 0xFF800000U;       ///< ordered(infinity)
inline constexpr uint32_t kOrderedMinusInfinity = 0x007FFFFFU;  ///< ordered(-infinity)

/// The float that ordered() made `key` of.
constexpr float value_of(uint32_t key) {
  return std::bit_cast<float>((key & 0x80000000U) != 0 ? key & 0x7FFFFFFFU : ~key);
}

/// Whether a row can be drawn from: its largest logit is finite, and none is NaN.
constexpr bool can_draw(uint32_t largest_key) {
  return largest_key > kOrderedMinusInfinity && largest_key < kOrderedInfinity;
}

struct FourWords {
  uint32_t word[4];
};

/// Philox4x32-10: a bijection of the counter for every key, whose words pass the usual tests of
/// randomness. Source: Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3".
constexpr FourWords philox(FourWords counter, uint64_t key) {
  uint32_t low_key = static_cast<uint32_t>(key), high_key = static_cast<uint32_t>(key >> 32);
  FourWords c = counter;
  for (int round = 0; round < 10; ++round) {
    const uint64_t a = uint64_t{0xD2511F53U} * c.word[0], b = uint64_t{0xCD9E8D57U} * c.word[2];
    c = {static_cast<uint32_t>(b >> 32) ^ c.word[1] ^ low_key,
         static_cast<uint32_t>(b),
         static_cast<uint32_t>(a >> 32) ^ c.word[3] ^ high_key,
         static_cast<uint32_t>(a)};
    low_key += 0x9E3779B9U;
    high_key += 0xBB67AE85U;
  }
  return c;
}

/// The random words of tokens 4 group to 4 group + 3.
constexpr FourWords words_of(uint64_t seed, uint32_t row, int64_t position, uint32_t group) {
  const uint64_t at = static_cast<uint64_t>(position);
  return philox({group, row, static_cast<uint32_t>(at), static_cast<uint32_t>(at >> 32)}, seed);
}

/// x = 2^exponent (1 + f).
struct SplitFloat {
  float f;  ///< sqrt(1/2) - 1 to sqrt(2) - 1
  float exponent;
};

/// Of a positive, normal x.
constexpr SplitFloat split(float x) {
  const int32_t bits = std::bit_cast<int32_t>(x);
  const int32_t exponent = (bits - 0x3F3504F3) >> 23;  // 0x3F3504F3: sqrt(1/2)
  return {std::bit_cast<float>(bits - exponent * (1 << 23)) - 1.0F, static_cast<float>(exponent)};
}

/// log(x), as precise for small f as f is.
constexpr float log_of(SplitFloat x) {
  const float f = x.f, square = f * f;
  float y = 7.0376836292e-2F;
  y = y * f - 1.1514610310e-1F;
  y = y * f + 1.1676998740e-1F;
  y = y * f - 1.2420140846e-1F;
  y = y * f + 1.4249322787e-1F;
  y = y * f - 1.6668057665e-1F;
  y = y * f + 2.0000714765e-1F;
  y = y * f - 2.4999993993e-1F;
  y = y * f + 3.3333331174e-1F;
  y = y * f * square;
  y = y + x.exponent * -2.12194440e-4F;
  y = y - 0.5F * square;
  return f + y + x.exponent * 0.693359375F;
}

/// -log(-log(1 - u)), u = (word + 1/2) / 2^32. The largest noise, that of small u, which decides
/// who is drawn, is the most precise.
constexpr float gumbel(uint32_t word) {
  const float u = (static_cast<float>(word) + 0.5F) * 0x1p-32F;
  const float rest = (static_cast<float>(~word) + 0.5F) * 0x1p-32F;  // 1 - u
  const SplitFloat of_rest = word < 0x40000000U ? SplitFloat{-u, 0.0F} : split(rest);
  return -log_of(split(-log_of(of_rest)));
}

/// (logit - largest) / temperature; a logit that is the largest gives 0, whatever the temperature.
constexpr float scaled(float logit, float largest, float inverse_temperature) {
  return (logit - largest) * inverse_temperature;
}

/// exp(x) of an x that is not positive, in units of 2^-40, cut off. Sums of 2^23 of them fit.
constexpr uint64_t mass_of(float x) {
  if (!(x >= -28.0F)) return 0;  // below 2^-40
  const int32_t exponent = static_cast<int32_t>(x * 1.44269504F - 0.5F);
  const float whole = static_cast<float>(exponent);
  const float f = x - whole * 0.693359375F - whole * -2.12194440e-4F;
  float y = 1.9875691500e-4F;
  y = y * f + 1.3981999507e-3F;
  y = y * f + 8.3334519073e-3F;
  y = y * f + 4.1665795894e-2F;
  y = y * f + 1.6666665459e-1F;
  y = y * f + 5.0000001201e-1F;
  y = y * (f * f) + f + 1.0F;
  return static_cast<uint64_t>(y * std::bit_cast<float>((exponent + 40 + 127) << 23));
}

/// The mass in front of a token has to be below this for it to be kept.
constexpr uint64_t mass_to_reach(double top_p, uint64_t total) {
  const double exact = top_p * static_cast<double>(total);
  const uint64_t below = static_cast<uint64_t>(exact);
  return std::min(static_cast<double>(below) < exact ? below + 1 : below, total);
}

/// Bits of a key that the search for the least kept one looks at in its three passes, from the top.
inline constexpr int kDigits = 3, kDigitBits = 11;
constexpr int digit_shift(int pass) {
  return pass == 0 ? 21 : pass == 1 ? 10 : 0;
}
constexpr int digit_bits(int pass) {
  return pass == 2 ? 10 : kDigitBits;
}

}  // namespace t2r::kernels
