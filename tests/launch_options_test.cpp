#include "launch/options/options.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>

#include "base/error.h"
#include "base/log.h"
#include "launch/backend.h"
#include "launch/train/lr_schedule.h"
#include "launch/train/train_config.h"

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
  EXPECT_EQ(nearest("learn", keys), "learning-rate");
  EXPECT_EQ(nearest("batch_size", keys), "batch-size");
  EXPECT_EQ(nearest("completely-different", keys), "");
  EXPECT_EQ(nearest("x", {"lr"}), "");
}

TEST(OptionSet, DumpGivesTheShortestNumbersThatReadBack) {
  double small = 3e-4, third = 1.0 / 3.0, whole = 2.0;
  OptionSet options("test", "");
  options.add("small", small, "");
  options.add("third", third, "");
  options.add("table.whole", whole, "");
  EXPECT_EQ(options.dump(), "small = 0.0003\nthird = 0.3333333333333333\n\n[table]\nwhole = 2.0\n");
}

// What the log's lines say while `action` runs.
template <class Action>
std::string logged(const Action& action) {
  testing::internal::CaptureStderr();
  action();
  return testing::internal::GetCapturedStderr();
}

TEST(OptionSet, KnowsWhatWasGivenAndSaysOnceWhatIsIdle) {
  int64_t count = 1, other = 2;
  bool flag = false;
  OptionSet options("test", "");
  options.add("count", count, "");
  options.add("other", other, "");
  options.add("table.flag", flag, "");
  options.parse({"--count", "1", "--table.flag"});
  EXPECT_TRUE(options.was_given("count"));
  EXPECT_TRUE(options.was_given("table.flag"));
  EXPECT_FALSE(options.was_given("other"));
  EXPECT_THROW(options.was_given("none"), ContractError);
  const std::string said = logged([&] {
    options.say_if_idle("count", true, "there is one");
    options.say_if_idle("count", true, "said again");
    options.say_if_idle("table.flag", false, "not idle");
    options.say_if_idle("other", true, "not given");
  });
  EXPECT_THAT(said, testing::EndsWith("--count has no effect: there is one\n"));
  EXPECT_EQ(std::count(said.begin(), said.end(), '\n'), 1) << said;
}

TEST(Log, EscapesControlCharacters) {
  const std::string said = logged([] { log::warning("a\nb\tc \x1b[2J\x7f \xC2\x9B \xC3\xA4\r"); });
  EXPECT_THAT(said, testing::EndsWith("a\\nb\\tc \\x1b[2J\\x7f \\x9b \xC3\xA4\\x0d\n"));
}

TEST(TrainConfig, RefusesWhatDoesNotFitAndWhatIsNoNumber) {
  const auto refusal = [](const auto& change) -> std::string {
    TrainConfig config;
    config.model = "m";
    config.train_data = {"d"};
    config.steps = 10;
    change(config);
    try {
      config.validate();
    } catch (const ConfigError& error) {
      return error.what();
    }
    return "";
  };
  EXPECT_EQ(refusal([](TrainConfig&) {}), "");
  EXPECT_THAT(refusal([](TrainConfig& c) { c.eps = 0.0; }), testing::HasSubstr("eps = 0, allowed"));
  EXPECT_THAT(refusal([](TrainConfig& c) { c.eps = -1.0; }), testing::HasSubstr("eps = -1"));
  EXPECT_THAT(refusal([](TrainConfig& c) { c.seed = -1; }), testing::HasSubstr("seed = -1"));
  EXPECT_THAT(refusal([](TrainConfig& c) { c.learning_rate = std::nan(""); }),
              testing::HasSubstr("learning-rate = nan"));
  EXPECT_THAT(refusal([](TrainConfig& c) { c.batch_size = c.sequence_length = int64_t{1} << 32; }),
              testing::HasSubstr("batch-size x sequence-length is more than"));
  EXPECT_THAT(refusal([](TrainConfig& c) { c.steps = int64_t{1} << 62; }),
              testing::HasSubstr("steps x batch-size x sequence-length is more than"));
  EXPECT_THAT(refusal([](TrainConfig& c) {
                c.model.clear();
                c.new_model.num_layers = 1;
                c.new_model.hidden_size = int64_t{1} << 60;
              }),
              testing::HasSubstr("model.hidden-size = "));
}

TEST(TrainConfig, TokensBecomeWholeSteps) {
  TrainConfig config;
  config.sequence_length = 100;
  config.batch_size = 10;
  config.tokens = 2999;
  EXPECT_EQ(config.total_steps(), 2);
}

TEST(Backend, RefusesAModelThatTheGpusKernelsDoNotHave) {
  const model::Placement gpu{torch::Device(torch::kCUDA, 0), torch::kBFloat16};
  model::DecoderConfig config =
      NewModelConfig{
          .family = "gpt2", .num_layers = 1, .hidden_size = 96, .num_heads = 2, .attention = "t2r"}
          .resolve(100, 16);
  const auto message = [&](const model::Placement& placement) -> std::string {
    try {
      check_model_fits(config, placement);
    } catch (const ConfigError& error) {
      return error.what();
    }
    return "accepted";
  };
  EXPECT_THAT(
      message(gpu),
      testing::HasSubstr("head size = 48, allowed on a GPU: 32, 64, 128; run with --device cpu"));
  EXPECT_EQ(message({}), "accepted");
  config.head_dim = 64;
  EXPECT_EQ(message(gpu), "accepted");
  config.linear->feature_size = 129;
  EXPECT_THAT(message(gpu), testing::HasSubstr("feature size = 129, allowed on a GPU: 1 to 128"));
  config.linear.reset();
  config.head_dim = 48;
  EXPECT_EQ(message(gpu), "accepted") << "softmax layers take any head size";
}

}  // namespace
}  // namespace t2r::launch
