#include "launch/options/options.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "base/error.h"
#include "base/log.h"
#include "launch/backend.h"
#include "launch/train/train_config.h"

namespace t2r::launch {
namespace {

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

/// What `t2r train` says of these arguments behind a model, data and 10 steps.
std::string train_refusal(std::vector<std::string> arguments) {
  TrainConfig config;
  OptionSet options("train", "");
  config.bind(options);
  const std::vector<std::string> base{
      "--output", "o", "--train-data", "d", "--model", "m", "--steps", "10"};
  arguments.insert(arguments.begin(), base.begin(), base.end());
  try {
    options.parse(arguments);
    config.validate();
  } catch (const ConfigError& error) {
    return error.what();
  }
  return "";
}

TEST(TrainConfig, RefusesWhatDoesNotFit) {
  EXPECT_EQ(train_refusal({}), "");
  EXPECT_EQ(train_refusal({"--eps", "0"}), "eps = 0, allowed: 1e-30 to 1");
  EXPECT_EQ(train_refusal({"--seed", "-1"}), "seed = -1, allowed: 0 or more");
  EXPECT_EQ(train_refusal({"--transfer-steps", "10"}),
            "transfer-steps = 10, allowed: 0 to 9 (steps - 1)");
  EXPECT_EQ(train_refusal({"--distillation", "0.5"}),
            "distillation = 0.5, allowed: 1 without a teacher");
  EXPECT_THAT(train_refusal({"--batch-size", "4294967296", "--sequence-length", "4294967296"}),
              testing::HasSubstr("batch-size x sequence-length is more than"));
  EXPECT_THAT(train_refusal({"--steps", "4611686018427387904"}),
              testing::HasSubstr("steps x batch-size x sequence-length is more than"));
}

TEST(TrainConfig, SaysWhereItIsBoundWhatAResumedRunMayChange) {
  TrainConfig config;
  config.steps = 7;
  const auto keys = [&](OnResume kind) {
    std::vector<std::string> found;
    for (const auto& [key, value] : config.facts(kind)) found.push_back(key);
    return found;
  };
  // Checkpoints hold them in this order.
  EXPECT_THAT(keys(OnResume::kEqual),
              testing::ElementsAre("sequence-length", "batch-size", "seed", "transfer-steps"));
  EXPECT_THAT(keys(OnResume::kSaid),
              testing::ElementsAre("steps",
                                   "learning-rate",
                                   "map-learning-rate",
                                   "transfer-learning-rate",
                                   "schedule",
                                   "warmup-steps",
                                   "final-lr-ratio",
                                   "beta1",
                                   "beta2",
                                   "eps",
                                   "weight-decay",
                                   "clip-norm",
                                   "dropout",
                                   "precision",
                                   "eval-tokens"));
  const RunFacts said = config.facts(OnResume::kSaid);
  EXPECT_EQ(said[0].second, "7");
  EXPECT_EQ(said[1].second, "0.0003");
  EXPECT_EQ(said[4].second, "cosine");
  EXPECT_EQ(said[9].second, "1e-08");
  EXPECT_EQ(said[11].second, "1.0");
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
