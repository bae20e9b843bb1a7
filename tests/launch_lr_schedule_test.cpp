#include "launch/train/lr_schedule.h"

#include <gtest/gtest.h>

#include <cmath>
#include <numbers>

namespace t2r::launch {
namespace {

constexpr LrShape kShapes[] = {
    LrShape::kCosine, LrShape::kLinear, LrShape::kInverseSqrt, LrShape::kConstant};

LrSchedule schedule(LrShape shape) {
  return {.shape = shape, .peak = 2.0, .final_ratio = 0.1, .warmup_steps = 10, .total_steps = 110};
}

TEST(LrSchedule, RisesFromZeroInAStraightLine) {
  for (const LrShape shape : kShapes) {
    for (int64_t step = 1; step <= 10; ++step)
      EXPECT_DOUBLE_EQ(schedule(shape).rate(step), 2.0 * static_cast<double>(step) / 10.0);
  }
}

TEST(LrSchedule, FollowsItsShapeBehindTheWarmUp) {
  for (int64_t step = 11; step <= 110; ++step) {
    const double part = static_cast<double>(step - 10) / 100.0;
    EXPECT_NEAR(schedule(LrShape::kCosine).rate(step),
                0.2 + 1.8 * 0.5 * (1.0 + std::cos(std::numbers::pi * part)),
                1e-12);
    EXPECT_NEAR(schedule(LrShape::kLinear).rate(step), 2.0 - 1.8 * part, 1e-12);
    EXPECT_NEAR(schedule(LrShape::kInverseSqrt).rate(step),
                2.0 * std::sqrt(10.0 / static_cast<double>(step)),
                1e-12);
    EXPECT_DOUBLE_EQ(schedule(LrShape::kConstant).rate(step), 2.0);
  }
}

TEST(LrSchedule, StaysAtItsEndBehindTheLastStep) {
  for (const LrShape shape : {LrShape::kCosine, LrShape::kLinear}) {
    EXPECT_NEAR(schedule(shape).rate(110), 0.2, 1e-12);
    EXPECT_NEAR(schedule(shape).rate(5000), 0.2, 1e-12);
  }
}

TEST(LrSchedule, BeginsAtThePeakWithoutWarmUp) {
  for (const LrShape shape : kShapes) {
    LrSchedule at_once = schedule(shape);
    at_once.warmup_steps = 0;
    at_once.total_steps = 1000000;
    EXPECT_NEAR(at_once.rate(1), 2.0, 1e-5);
  }
}

TEST(LrSchedule, IsFiniteWhereTheRunIsNotLongerThanTheWarmUp) {
  for (const LrShape shape : kShapes) {
    LrSchedule brief = schedule(shape);
    brief.total_steps = 5;
    EXPECT_DOUBLE_EQ(brief.rate(5), 1.0);
    EXPECT_TRUE(std::isfinite(brief.rate(11)));
  }
}

}  // namespace
}  // namespace t2r::launch
