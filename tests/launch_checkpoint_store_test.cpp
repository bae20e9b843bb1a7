// A checkpoint is there as a whole or not at all, and what stood in its way keeps its class.
#include "launch/checkpoints/checkpoint.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>
#include <functional>
#include <string>
#include <vector>

#include "base/error.h"
#include "dist/local_communicator.h"
#include "tests/model_support.h"
#include "tests/support.h"

namespace t2r::launch {
namespace {

namespace fs = std::filesystem;
using ::testing::HasSubstr;
using ::testing::IsEmpty;

constexpr int kRanks = 2;

model::DecoderConfig small_config() {
  return test::tiny_config("llama");
}

/// What one rank trains.
struct RankState {
  RankState() {
    model.initialize(3);
    optimizer.first_moment().copy_(torch::arange(arena.masters().numel(), torch::kFloat32));
    optimizer.second_moment().fill_(0.5);
  }

  CheckpointContent content() {
    return {model, format, optimizer, {{"seed", "1"}}, {}, companions};
  }

  model::DecoderLM model{small_config()};
  model::SourceFormat format = {};
  model::ParameterArena arena{model.parameters()};
  model::AdamW optimizer{arena, {}};
  std::vector<CompanionFile> companions = {{"tokenizer.json", "{}"}};
};

class CheckpointStoreTest : public ::testing::Test {
 protected:
  std::vector<std::string> names() const {
    std::vector<std::string> found;
    std::error_code none;
    for (const fs::directory_entry& entry : fs::directory_iterator(folder_, none))
      found.push_back(entry.path().filename().string());
    std::ranges::sort(found);
    return found;
  }

  /// Saves step 2 on every rank; each is expected to throw ErrorType, with `words`.
  template <class ErrorType>
  void expect_failure(const std::function<CheckpointContent(RankState&, int rank)>& content,
                      const std::string& words) const {
    dist::run_local_ranks(kRanks, [&](dist::Communicator& communicator) {
      RankState run;
      CheckpointStore store(folder_, 2, communicator);
      try {
        store.save(content(run, communicator.rank()), {.step = 2});
        ADD_FAILURE() << "saved";
      } catch (const ErrorType& error) {
        EXPECT_THAT(error.what(), HasSubstr("checkpoint not saved: rank "));
        EXPECT_THAT(error.what(), HasSubstr(words));
      }
    });
  }

  test::TemporaryFolder temporary_;
  fs::path folder_ = temporary_ / "checkpoints";
};

TEST_F(CheckpointStoreTest, LoadsWhatItSavedOnAnotherNumberOfRanks) {
  const TrainingPosition position{
      .step = 2, .num_updates = 2, .sample_cursor = 8, .num_tokens = 64};
  dist::run_local_ranks(kRanks, [&](dist::Communicator& communicator) {
    RankState run;
    CheckpointStore(folder_, 2, communicator).save(run.content(), position);
  });
  EXPECT_THAT(names(), ::testing::Contains("step-00000002"));
  EXPECT_TRUE(fs::exists(folder_ / "step-00000002" / "tokenizer.json"));
  dist::run_local_ranks(3, [&](dist::Communicator& communicator) {
    const RankState saved;
    RankState run;
    run.arena.masters().zero_();
    run.optimizer.first_moment().zero_();
    run.optimizer.second_moment().zero_();
    const auto resumed = CheckpointStore(folder_, 2, communicator).load(run.content());
    ASSERT_TRUE(resumed.has_value());
    EXPECT_EQ(resumed->position, position);
    EXPECT_TRUE(run.arena.masters().equal(saved.arena.masters()));
    EXPECT_TRUE(run.optimizer.first_moment().equal(saved.optimizer.first_moment()));
    EXPECT_TRUE(run.optimizer.second_moment().equal(saved.optimizer.second_moment()));
  });
}

TEST_F(CheckpointStoreTest, CannotWriteWhereAFileLies) {
  std::ofstream(folder_) << "a file";
  expect_failure<WriteError>([](RankState& run, int) { return run.content(); }, "cannot create");
}

// Not forgiven: what is broken stays broken, and every save would cost the run's time.
TEST_F(CheckpointStoreTest, ABugIsNoFullDisk) {
  model::DecoderLM without_memory(small_config(), torch::kMeta);
  expect_failure<ContractError>(
      [&](RankState& run, int) -> CheckpointContent {
        return {without_memory, run.format, run.optimizer, {{"seed", "1"}}, {}, run.companions};
      },
      "");
  EXPECT_THAT(names(), IsEmpty());
}

}  // namespace
}  // namespace t2r::launch
