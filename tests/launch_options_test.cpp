#include "launch/options.h"

#include <gtest/gtest.h>

#include "base/error.h"
#include "launch/lr_schedule.h"
#include "launch/train_config.h"

namespace t2r::launch {
namespace {

TEST(LrSchedule, WarmsUpThenFollowsItsShape) {
  LrSchedule schedule{
      .shape = "cosine", .peak = 1.0, .final_ratio = 0.1, .warmup_steps = 10, .total_steps = 110};
  EXPECT_DOUBLE_EQ(schedule.rate(1), 0.1);
  EXPECT_DOUBLE_EQ(schedule.rate(10), 1.0);
  EXPECT_NEAR(schedule.rate(60), 0.55, 1e-12);
  EXPECT_NEAR(schedule.rate(110), 0.1, 1e-12);
  EXPECT_NEAR(schedule.rate(500), 0.1, 1e-12);
  schedule.shape = "linear";
  EXPECT_NEAR(schedule.rate(60), 0.55, 1e-12);
  EXPECT_NEAR(schedule.rate(85), 0.325, 1e-12);
  schedule.shape = "inverse-sqrt";
  EXPECT_NEAR(schedule.rate(40), 0.5, 1e-12);
  schedule.shape = "constant";
  EXPECT_DOUBLE_EQ(schedule.rate(400), 1.0);
  schedule.warmup_steps = 0;
  EXPECT_DOUBLE_EQ(schedule.rate(1), 1.0);
}

TEST(OptionSet, NearestFindsTyposAndNothingElse) {
  const std::vector<std::string> keys{"learning-rate", "batch-size", "steps"};
  EXPECT_EQ(nearest("lerning-rate", keys), "learning-rate");
  EXPECT_EQ(nearest("stpes", keys), "steps");
  EXPECT_EQ(nearest("completely-different", keys), "");
}

TEST(OptionSet, DumpGivesTheShortestNumbersThatReadBack) {
  double small = 3e-4, third = 1.0 / 3.0, whole = 2.0;
  OptionSet options("test", "");
  options.add("small", small, "");
  options.add("third", third, "");
  options.add("table.whole", whole, "");
  EXPECT_EQ(options.dump(), "small = 0.0003\nthird = 0.3333333333333333\n\n[table]\nwhole = 2.0\n");
}

TEST(TrainConfig, TokensBecomeWholeSteps) {
  TrainConfig config;
  config.sequence_length = 100;
  config.batch_size = 10;
  config.tokens = 2999;
  EXPECT_EQ(config.total_steps(), 2);
}

}  // namespace
}  // namespace t2r::launch
