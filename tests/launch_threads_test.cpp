// How many threads a command takes: masks, control groups, and the work of a step.
#include "launch/threads.h"

#include <gtest/gtest.h>

#include <cmath>
#include <fstream>
#include <numeric>

#include "model/nets/decoder_lm.h"
#include "tests/model_support.h"
#include "tests/support.h"

namespace t2r::launch {
namespace {

namespace fs = std::filesystem;

void write(const fs::path& file, const std::string& text) {
  fs::create_directories(file.parent_path());
  std::ofstream(file) << text;
}

TEST(Processors, ControlGroupsOfBothVersionsLimitThem) {
  const test::TemporaryFolder folder;
  const fs::path root = folder.path();
  EXPECT_TRUE(std::isinf(granted_processors("", root)));
  EXPECT_TRUE(std::isinf(granted_processors("0::/", root)));
  write(root / "cpu.max", "max 100000\n");
  EXPECT_TRUE(std::isinf(granted_processors("0::/\n", root)));
  write(root / "a/cpu.max", "350000 100000\n");
  write(root / "a/b/cpu.max", "max 100000\n");
  EXPECT_EQ(granted_processors("0::/a/b\n", root), 3.5);  // the group around it counts
  write(root / "a/b/cpu.max", "50000 100000\n");
  EXPECT_EQ(granted_processors("0::/a/b\n", root), 0.5);
  EXPECT_TRUE(std::isinf(granted_processors("0::/elsewhere\n", root)));
  // A container that sees its own group as the root, under the name that it has outside.
  write(root / "cpu.max", "200000 100000\n");
  EXPECT_EQ(granted_processors("0::/docker/0123\n", root), 2.0);

  write(root / "cpu,cpuacct/job/cpu.cfs_quota_us", "150000\n");
  write(root / "cpu,cpuacct/job/cpu.cfs_period_us", "50000\n");
  EXPECT_EQ(granted_processors("5:memory:/x\n4:cpu,cpuacct:/job\n", root), 3.0);
  write(root / "cpu,cpuacct/job/cpu.cfs_quota_us", "-1\n");
  EXPECT_TRUE(std::isinf(granted_processors("4:cpu,cpuacct:/job\n3:cpuset:/job", root)));
}

TEST(Processors, RanksOfAHostShareThem) {
  const double all = INFINITY;
  EXPECT_EQ(share_of_processors({{0, 1, 2, 3}}, 0, all), 4);
  EXPECT_EQ(share_of_processors({{0, 1, 2, 3}, {0, 1, 2, 3}}, 1, all), 2);
  EXPECT_EQ(share_of_processors({{0, 1}, {2, 3}}, 1, all), 2);  // bound by the launcher
  EXPECT_EQ(share_of_processors({{0, 1, 2}, {2, 3, 4}}, 0, all), 2);
  EXPECT_EQ(share_of_processors({{0}, {0}, {0}}, 2, all), 1);
  EXPECT_EQ(share_of_processors({{0, 1, 2}, {0, 1, 2}, {0, 1, 2}}, 0, all), 1);
  EXPECT_EQ(share_of_processors({{0, 1, 2, 3}}, 0, 2.5), 2);
  EXPECT_EQ(share_of_processors({{0, 1, 2, 3}}, 0, 0.5), 1);
  EXPECT_EQ(share_of_processors({{0, 1, 2, 3}, {4, 5, 6, 7}}, 0, 6.0), 3);
  std::vector<int> many(2000);
  std::iota(many.begin(), many.end(), 0);
  EXPECT_EQ(share_of_processors({many}, 0, all), kMostThreads) << "what set_threads takes";
  EXPECT_GE(usable_processors(), 1);
  EXPECT_LE(usable_processors(), static_cast<int64_t>(allowed_processors().size()));
}

TEST(Threads, AreAsManyAsAStepIsWorth) {
  // A thread is worth 50 us between two waits: 1e6 multiply-adds, or 0.5 MB of weights.
  EXPECT_EQ(threads_for({.multiply_adds = 10 * 4.5e6, .bytes = 0, .num_operations = 10}, 16), 4);
  EXPECT_EQ(threads_for({.multiply_adds = 0, .bytes = 10 * 3.5 * 0.5e6, .num_operations = 10}, 16),
            3);
  EXPECT_EQ(threads_for({.multiply_adds = 4.5e6, .bytes = 0, .num_operations = 10}, 16), 1);
  EXPECT_EQ(threads_for({.multiply_adds = 1e18, .bytes = 0, .num_operations = 10}, 16), 16);
  EXPECT_EQ(threads_for({.multiply_adds = 1e300, .bytes = 1e300, .num_operations = 1}, 1), 1);
  EXPECT_EQ(threads_for({.multiply_adds = 0, .bytes = 0, .num_operations = 0}, 16), 1);
}

TEST(Threads, AStepsWorkIsItsWeightsTimesItsTokens) {
  for (const std::string family : {"gpt2", "llama"}) {
    const model::DecoderConfig config = test::tiny_config(family);
    const model::DecoderLM model(config);
    // A table that is looked up alone: positions of GPT-2, whose tokens are tied to the head.
    const int64_t rows = family == "gpt2" ? config.max_positions : config.vocab_size;
    const auto weights =
        static_cast<double>(model.parameters().num_scalars() - rows * config.hidden_size);
    const StepWork one = work_of_step(model, 1), many = work_of_step(model, 1000);
    EXPECT_EQ(one.multiply_adds, weights);
    EXPECT_EQ(many.multiply_adds, 1000 * weights);
    EXPECT_EQ(many.bytes, 4 * weights) << "read once";
    EXPECT_EQ(many.num_operations, one.num_operations);
    EXPECT_GE(one.num_operations, config.num_layers);
    const StepWork training = work_of_step(model, 1000, /*trains=*/true);
    EXPECT_EQ(training.multiply_adds, 3 * many.multiply_adds);
    EXPECT_EQ(training.num_operations, 3 * many.num_operations);

    EXPECT_EQ(threads_for(one, 64), 1);
    EXPECT_EQ(threads_for(work_of_step(model, 1 << 16, true), 2), 2);
    EXPECT_GT(threads_for(work_of_step(model, 1 << 16, true), 64), 8);
    EXPECT_EQ(threads_for(work_of_step(model, int64_t{1} << 60, true), 64), 64);
  }
}

TEST(Threads, MoreThanAProcessTakesAreRefusedIfTheyAreGiven) {
  EXPECT_THROW(set_threads(kMostThreads + 1), ContractError);
  EXPECT_THROW(set_threads(int64_t{1} << 32), ContractError);
}

}  // namespace
}  // namespace t2r::launch
