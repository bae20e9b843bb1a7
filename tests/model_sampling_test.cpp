// Drawn tokens: the rule's pieces against float64, what is kept against a sorted row, frequencies
// against probabilities.
#include "model/search/sampling.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <set>

#include "base/error.h"
#include "model/kernels/draw_rule.h"
#include "model/search/generate.h"
#include "tests/model_support.h"

namespace t2r::model {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;
using torch::Tensor;

constexpr float kInfinity = std::numeric_limits<float>::infinity();
constexpr float kNan = std::numeric_limits<float>::quiet_NaN();

/// Tokens of `count` draws from one row, as rows of one position each.
std::vector<int64_t> draws(const std::vector<float>& logits,
                           const SamplingOptions& options,
                           int64_t count) {
  const Tensor rows = torch::tensor(logits).unsqueeze(0).expand({count, -1});
  const Tensor tokens = draw_tokens(rows, 7, options);
  const int64_t* const from = tokens.const_data_ptr<int64_t>();
  return {from, from + count};
}

/// The kept tokens by sorting, in float64.
std::vector<size_t> kept_tokens(const std::vector<float>& logits, const SamplingOptions& options) {
  std::vector<double> sorted(logits.begin(), logits.end());
  std::sort(sorted.rbegin(), sorted.rend());
  double least = -std::numeric_limits<double>::infinity(), total = 0.0;
  if (options.top_k > 0 && options.top_k < static_cast<int64_t>(sorted.size()))
    least = sorted[static_cast<size_t>(options.top_k - 1)];
  const auto weight = [&](double logit) {
    return logit >= least ? std::exp((logit - sorted[0]) / options.temperature) : 0.0;
  };
  for (const double logit : sorted) total += weight(logit);
  std::vector<size_t> kept;
  for (size_t i = 0; i < logits.size(); ++i) {
    double in_front = 0.0;
    for (const double logit : sorted) in_front += logit > logits[i] ? weight(logit) : 0.0;
    if (logits[i] >= least && (options.top_p == 1.0 || in_front < options.top_p * total))
      kept.push_back(i);
  }
  return kept;
}

/// Frequencies against softmax over what is kept; nothing else is drawn.
void expect_distribution(const std::vector<float>& logits,
                         const SamplingOptions& options,
                         int64_t num_draws) {
  SCOPED_TRACE(testing::Message() << "temperature " << options.temperature << " k " << options.top_k
                                  << " p " << options.top_p);
  std::vector<double> counts(logits.size());
  for (const int64_t token : draws(logits, options, num_draws))
    ++counts[static_cast<size_t>(token)];
  double total = 0.0, chi_square = 0.0, kept_draws = 0.0;
  const std::vector<size_t> kept = kept_tokens(logits, options);
  for (const size_t i : kept) total += std::exp(logits[i] / options.temperature);
  for (const size_t i : kept) {
    const double expected =
        static_cast<double>(num_draws) * std::exp(logits[i] / options.temperature) / total;
    ASSERT_GT(expected, 10.0) << "too rare for chi-square";
    chi_square += (counts[i] - expected) * (counts[i] - expected) / expected;
    kept_draws += counts[i];
  }
  EXPECT_EQ(kept_draws, static_cast<double>(num_draws));
  const double freedom = static_cast<double>(kept.size()) - 1.0;
  // A right sampler is above this once in 10^5 (Wilson and Hilferty's cube root); the seed is
  // fixed.
  const double bar =
      freedom * std::pow(1.0 - 2.0 / (9.0 * freedom) + 4.265 * std::sqrt(2.0 / (9.0 * freedom)), 3);
  if (freedom > 0.0) EXPECT_LT(chi_square, bar) << kept.size() << " kept";
}

TEST(DrawRule, PhiloxGivesTheKnownAnswers) {  // of its authors' library, Random123
  const auto words = [](t2r::kernels::FourWords counter, uint64_t key) {
    const t2r::kernels::FourWords out = t2r::kernels::philox(counter, key);
    return std::vector<uint32_t>(out.word, out.word + 4);
  };
  EXPECT_THAT(words({0, 0, 0, 0}, 0), ElementsAre(0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8));
  EXPECT_THAT(words({0xffffffff, 0xffffffff, 0xffffffff, 0xffffffff}, 0xffffffffffffffff),
              ElementsAre(0x408f276d, 0x41c83b0e, 0xa20bc7c6, 0x6d5451fd));
  EXPECT_THAT(words({0x243f6a88, 0x85a308d3, 0x13198a2e, 0x03707344}, 0x299f31d0a4093822),
              ElementsAre(0xd16cfe09, 0x94fdcceb, 0x5001e420, 0x24126ea1));
}

TEST(DrawRule, KeysHaveTheOrderOfFloats) {
  const std::vector<float> rising{
      -kInfinity, -3e38F, -1.0F, -1e-38F, -1e-45F, 0.0F, 1e-45F, 1.0F, 1.5F, 3e38F, kInfinity};
  for (size_t i = 0; i < rising.size(); ++i) {
    EXPECT_EQ(t2r::kernels::value_of(t2r::kernels::ordered(rising[i])), rising[i]);
    if (i > 0) EXPECT_LT(t2r::kernels::ordered(rising[i - 1]), t2r::kernels::ordered(rising[i]));
  }
  EXPECT_EQ(t2r::kernels::ordered(-0.0F), t2r::kernels::ordered(0.0F));
  EXPECT_EQ(t2r::kernels::ordered(-kInfinity), t2r::kernels::kOrderedMinusInfinity);
  EXPECT_EQ(t2r::kernels::ordered(kInfinity), t2r::kernels::kOrderedInfinity);
  EXPECT_FALSE(t2r::kernels::can_draw(t2r::kernels::ordered(kNan)));
  EXPECT_FALSE(t2r::kernels::can_draw(t2r::kernels::ordered(-kNan)));
}

TEST(DrawRule, NoiseAndMassAreFloat32sBest) {
  double worst_noise = 0.0, worst_mass = 0.0;
  uint32_t word = 0;
  for (int i = 0; i < 2000000; ++i) {
    // The whole range, its two ends and where the formula changes.
    if (i >= 1000) word = word * 1664525U + 1013904223U;
    const uint32_t at = i < 200    ? static_cast<uint32_t>(i)
                        : i < 400  ? ~static_cast<uint32_t>(i - 200)
                        : i < 1000 ? 0x40000000U + static_cast<uint32_t>(i - 700)
                                   : word;
    const double u = (static_cast<double>(at) + 0.5) * 0x1p-32;
    const double exact = -std::log(-std::log1p(-u));
    worst_noise = std::max(
        worst_noise, std::abs(t2r::kernels::gumbel(at) - exact) / std::max(1.0, std::abs(exact)));
    const float x = -20.0F * static_cast<float>(u);
    worst_mass = std::max(
        worst_mass,
        std::abs(static_cast<double>(t2r::kernels::mass_of(x)) * 0x1p-40 / std::exp(double{x}) -
                 1.0));
  }
  EXPECT_LT(worst_noise, 4e-7);
  EXPECT_LT(worst_mass, 6e-4);  // at -20 the unit is 4.4e-4 of the mass
  for (float x = 0.0F; x > -6.0F; x -= 0.001F)
    ASSERT_NEAR(
        static_cast<double>(t2r::kernels::mass_of(x)) * 0x1p-40 / std::exp(double{x}), 1.0, 4e-7);
  EXPECT_EQ(t2r::kernels::mass_of(0.0F), uint64_t{1} << 40);
  EXPECT_EQ(t2r::kernels::mass_of(-28.1F), 0U);
  EXPECT_EQ(t2r::kernels::mass_of(-kInfinity), 0U);
}

TEST(Sampling, FrequenciesAreTheProbabilitiesOfWhatIsKept) {
  const std::vector<float> logits{0.3F, -1.0F, 2.0F, 1.5F, -2.0F, 0.0F, 1.5F, -0.7F, 0.9F};
  expect_distribution(logits, {.temperature = 1.0, .seed = 1}, 40000);
  expect_distribution(logits, {.temperature = 0.6, .seed = 2}, 40000);
  expect_distribution(logits, {.temperature = 3.0, .seed = 3}, 40000);
  expect_distribution(logits, {.temperature = 1.0, .top_k = 4, .seed = 4}, 40000);
  expect_distribution(logits, {.temperature = 0.8, .top_p = 0.7, .seed = 5}, 40000);
  expect_distribution(logits, {.temperature = 1.2, .top_k = 6, .top_p = 0.8, .seed = 6}, 40000);
  std::vector<float> many(400);
  for (size_t i = 0; i < many.size(); ++i)
    many[i] = 1.3F * std::sin(static_cast<float>(i)) + static_cast<float>(i % 7) * 0.2F;
  expect_distribution(many, {.temperature = 1.0, .seed = 7}, 60000);
  expect_distribution(many, {.temperature = 1.0, .top_k = 100, .seed = 8}, 60000);
  expect_distribution(many, {.temperature = 1.0, .top_p = 0.9, .seed = 9}, 60000);
}

TEST(Sampling, KeepsWhatTopKAndTopPSayWithEqualLogitsTogether) {
  const std::vector<float> logits{1.0F, 3.0F, 2.0F, 2.0F, -1.0F, 2.0F, 0.0F, 3.0F, -0.0F, 1.0F};
  const auto expect_kept = [&](SamplingOptions options, const std::vector<size_t>& wanted) {
    SCOPED_TRACE(testing::Message() << "k " << options.top_k << " p " << options.top_p);
    options.temperature = 2.0;  // every kept token comes in so many draws
    const std::vector<int64_t> drawn = draws(logits, options, 3000);
    const std::set<int64_t> found(drawn.begin(), drawn.end());
    EXPECT_EQ(std::vector<size_t>(found.begin(), found.end()), wanted);
    EXPECT_EQ(kept_tokens(logits, options), wanted);
  };
  const std::vector<size_t> all{0, 1, 2, 3, 4, 5, 6, 7, 8, 9}, two{1, 7}, five{1, 2, 3, 5, 7};
  expect_kept({}, all);
  expect_kept({.top_k = 1}, two);
  expect_kept({.top_k = 2}, two);
  expect_kept({.top_k = 3}, five);
  expect_kept({.top_k = 5}, five);
  expect_kept({.top_k = 6}, {0, 1, 2, 3, 5, 7, 9});
  expect_kept({.top_k = 8}, {0, 1, 2, 3, 5, 6, 7, 8, 9});
  expect_kept({.top_k = 10}, all);
  expect_kept({.top_k = 1000}, all);
  // exp(l / 2) of 3, 3: 8.96; of 2, 2, 2: 8.15; of 1, 1: 3.30; of 0, -0: 2; of -1: 0.61. Sum 23.02.
  expect_kept({.top_p = 1e-9}, two);
  expect_kept({.top_p = 0.38}, two);
  expect_kept({.top_p = 0.40}, five);
  expect_kept({.top_p = 0.74}, five);
  expect_kept({.top_p = 0.75}, {0, 1, 2, 3, 5, 7, 9});
  expect_kept({.top_p = 0.98}, all);
  // Of the five largest alone: 0.524.
  expect_kept({.top_k = 5, .top_p = 0.52}, two);
  expect_kept({.top_k = 5, .top_p = 0.53}, five);
}

TEST(Sampling, DrawsAreAFunctionOfSeedRowPositionAndLogits) {
  torch::manual_seed(1);
  const Tensor row = torch::randn({1, 1001}), rows = row.expand({64, -1});
  const SamplingOptions options{.temperature = 1.0, .seed = 5};
  const Tensor tokens = draw_tokens(rows, 10, options);
  EXPECT_TRUE(tokens.equal(draw_tokens(rows, 10, options)));
  EXPECT_TRUE(tokens.narrow(0, 0, 1).equal(draw_tokens(row, 10, options)));
  // Of 64 draws from 1001 about equally likely tokens, few coincide.
  const auto num_equal = [&](const Tensor& other) {
    return tokens.eq(other).sum().item<int64_t>();
  };
  EXPECT_LT(num_equal(tokens[0]), 8);
  EXPECT_LT(num_equal(draw_tokens(rows, 11, options)), 8);
  EXPECT_LT(num_equal(draw_tokens(rows, 10 + (int64_t{1} << 32), options)), 8);
  EXPECT_LT(num_equal(draw_tokens(rows, 10, {.temperature = 1.0, .seed = 6})), 8);
}

TEST(Sampling, ASeedsTokensStayWhatTheyAre) {  // on every machine, and from version to version
  std::vector<float> logits(50257);
  for (size_t i = 0; i < logits.size(); ++i)
    logits[i] = static_cast<float>(i * 7919 % 10007) * 0.001F;
  const auto first = [&](const SamplingOptions& options) { return draws(logits, options, 4); };
  EXPECT_THAT(first({.temperature = 1.0, .seed = 3}), ElementsAre(7419, 36410, 11613, 1136));
  EXPECT_THAT(first({.temperature = 0.7, .top_k = 50, .seed = 3}),
              ElementsAre(44188, 2080, 10400, 44188));
  EXPECT_THAT(first({.temperature = 0.7, .top_k = 500, .top_p = 0.5, .seed = 2}),
              ElementsAre(30160, 46407, 925, 27826));
}

TEST(Sampling, TemperatureZeroAndNearIsTheFirstOfTheLargest) {
  torch::manual_seed(2);
  const Tensor logits = torch::randint(-3, 4, {20, 333}).to(torch::kFloat32);
  EXPECT_TRUE(draw_tokens(logits, 3, {}).equal(logits.argmax(-1)));
  const Tensor distinct = torch::randn({20, 333}).to(torch::kBFloat16);
  for (const double temperature : {1e-6, 1e-300}) {
    const Tensor tokens = draw_tokens(distinct, 3, {.temperature = temperature});
    EXPECT_TRUE(distinct.gather(1, tokens.unsqueeze(1)).equal(distinct.amax(-1, true)));
  }
  EXPECT_EQ(draws({-2.0F}, {.temperature = 1.0}, 1).front(), 0);
  EXPECT_EQ(draws({-kInfinity, 1.0F, -kInfinity}, {.temperature = 1e300}, 1).front(), 1);
}

TEST(Sampling, LogitsThatAreNotFiniteAreRefused) {
  const char* const expected = "sequence 1: no token can be drawn";
  for (const SamplingOptions& options :
       {SamplingOptions{}, {.temperature = 1.0, .top_k = 2, .top_p = 0.9}}) {  // greedy, drawn
    for (const auto type : {torch::kFloat32, torch::kBFloat16}) {
      const auto refusal = [&](const std::vector<float>& bad) -> std::string {
        const Tensor logits = torch::zeros({2, static_cast<int64_t>(bad.size())}, type);
        logits[1].copy_(torch::tensor(bad));
        try {
          draw_tokens(logits, 3, options);
        } catch (const NumericError& error) {
          return error.what();
        }
        return "nothing was thrown";
      };
      EXPECT_THAT(refusal({0.0F, kNan, 1.0F}), HasSubstr(expected));
      EXPECT_THAT(refusal({0.0F, -kNan, 1.0F}), HasSubstr(expected));
      EXPECT_THAT(refusal({0.0F, kInfinity, 1.0F}), HasSubstr(expected));
      EXPECT_THAT(refusal({-kInfinity, -kInfinity, -kInfinity}), HasSubstr(expected));
      EXPECT_EQ(refusal({0.0F, -kInfinity, 1.0F}), "nothing was thrown");
    }
  }
}

TEST(Sampling, GenerationTakesItsTokensFromTheWholeSequencesLogits) {
  DecoderLM model(test::tiny_config("llama"));
  model.initialize(3);
  const Tensor prompt = torch::randint(0, 50, {3, 4}, torch::kInt64);
  const SamplingOptions options{.temperature = 1.5, .top_k = 30, .top_p = 0.95, .seed = 4};
  const Tensor tokens = generate(*make_decode_loop(model), prompt, 20, {}, options).tokens_BT;
  EXPECT_TRUE(tokens.equal(generate(*make_decode_loop(model), prompt, 20, {}, options).tokens_BT));
  const torch::NoGradGuard no_grad;
  const Tensor logits = model.logits(model.hidden(tokens));
  for (int64_t t = 4; t < 24; ++t)
    EXPECT_TRUE(tokens.select(1, t).equal(draw_tokens(logits.select(1, t - 1), t, options))) << t;
  const Tensor greedy = generate(*make_decode_loop(model), prompt, 20, {}, {}).tokens_BT;
  EXPECT_FALSE(tokens.equal(greedy));
}

TEST(SamplingOptions, ValuesThatAreNotAllowedAreNamed) {
  const auto refusal = [](const SamplingOptions& options) -> std::string {
    try {
      options.validate();
    } catch (const ConfigError& error) {
      return error.what();
    }
    return "nothing was thrown";
  };
  EXPECT_EQ(refusal({.temperature = -0.5}), "temperature = -0.5, allowed: 0 or more");
  EXPECT_THAT(refusal({.temperature = std::nan("")}), HasSubstr("temperature = nan"));
  EXPECT_EQ(refusal({.top_k = -1}), "top-k = -1, allowed: 0 or more");
  EXPECT_EQ(refusal({.top_p = 0.0}), "top-p = 0, allowed: above 0, up to 1");
  EXPECT_EQ(refusal({.top_p = 1.5}), "top-p = 1.5, allowed: above 0, up to 1");
  EXPECT_EQ(refusal({.temperature = 0.7, .top_k = 50, .top_p = 0.9}), "nothing was thrown");
}

}  // namespace
}  // namespace t2r::model
