// What AdamW decides on the CPU, and what it keeps.
#include <gtest/gtest.h>

#include <cmath>
#include <limits>

#include "model/nets/decoder_lm.h"
#include "model/optim/adamw.h"
#include "tests/model_support.h"

namespace t2r::model {
namespace {

struct Trained {
  Trained() { model.initialize(1); }

  DecoderLM model{test::tiny_config("llama")};
  ParameterArena arena{model.parameters()};
  AdamW optimizer{arena, {}};
};

TEST(AdamW, NormIsThatOfTheMeanGradientAndClippingScalesItDown) {
  const Trained run;
  run.arena.gradients().fill_(3.0);
  const double expected = 3.0 * std::sqrt(static_cast<double>(run.arena.gradients().numel())) / 6.0;
  const double rounding = 1e-12 * expected;  // of float64
  const AdamW::Norm free = run.optimizer.norm(1.0, 6, /*clip_norm=*/0.0);
  EXPECT_NEAR(free.value, expected, rounding);
  EXPECT_EQ(free.gradient_scale, 1.0 / 6.0);
  EXPECT_TRUE(free.is_finite);
  EXPECT_EQ(run.optimizer.norm(1.0, 6, 2.0 * expected).gradient_scale, 1.0 / 6.0);
  const AdamW::Norm clipped = run.optimizer.norm(1.0, 6, expected / 4.0);
  EXPECT_NEAR(clipped.value, expected, rounding);
  EXPECT_NEAR(clipped.gradient_scale, 1.0 / 24.0, 1e-12);
}

TEST(AdamW, SaysWhatIsNotFinite) {
  constexpr double kInfinity = std::numeric_limits<double>::infinity();
  const Trained run;
  run.arena.gradients().fill_(1.0);
  EXPECT_TRUE(run.optimizer.norm(1.0, 2, 1.0).is_finite);
  EXPECT_FALSE(run.optimizer.norm(kInfinity, 2, 1.0).is_finite);
  run.arena.gradients()[5] = std::numeric_limits<float>::quiet_NaN();
  EXPECT_FALSE(run.optimizer.norm(1.0, 2, 1.0).is_finite);
  run.arena.gradients().zero_();
  EXPECT_FALSE(run.optimizer.norm(0.0, 0, 1.0).is_finite) << "no target, no mean";
}

TEST(AdamW, ResetForgetsWhatItKept) {
  Trained run;
  const torch::Tensor start = run.arena.masters().clone();
  run.arena.gradients().copy_(torch::linspace(-1, 1, start.numel()));
  const auto update = [&] {
    run.arena.masters().copy_(start);
    run.optimizer.update({.learning_rate = 1e-2, .map_learning_rate = 1e-2});
    return run.arena.masters().clone();
  };
  const torch::Tensor first = update();
  EXPECT_FALSE(first.equal(start));
  for (const AdamW::State& kept : run.optimizer.state())
    EXPECT_GT(kept.values.abs().max().item<float>(), 0.0f) << kept.name;
  EXPECT_FALSE(update().equal(first)) << "the moments of the first update count";
  run.optimizer.reset();
  EXPECT_TRUE(update().equal(first));
}

}  // namespace
}  // namespace t2r::model
