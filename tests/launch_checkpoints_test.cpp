#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <torch/types.h>

#include <cmath>
#include <filesystem>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "base/durable_file.h"
#include "base/error.h"
#include "dist/local_communicator.h"
#include "launch/checkpoints/checkpoint.h"
#include "model/nets/decoder_lm.h"
#include "tests/model_support.h"
#include "tests/support.h"

namespace t2r::launch {
namespace {

namespace fs = std::filesystem;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::UnorderedElementsAre;

/// What one rank of a run has: every rank the same model and moments.
struct Training {
  explicit Training(uint64_t seed) : model(test::tiny_config("llama")) {
    model.initialize(seed);
    arena.emplace(model.parameters());
    optimizer.emplace(*arena, model::AdamWOptions{});
    step(seed);
  }

  /// Another state of weights and moments, as training leaves it.
  void step(uint64_t number) {
    const torch::NoGradGuard no_grad;
    arena->masters().add_(0.25 * static_cast<double>(number));
    const torch::Tensor ramp = torch::arange(arena->masters().numel(), torch::kFloat32);
    optimizer->first_moment().copy_(ramp * static_cast<double>(number));
    optimizer->second_moment().copy_(ramp + static_cast<double>(number));
  }

  CheckpointContent content() {
    return {.model = model,
            .format = format,
            .optimizer = *optimizer,
            .identity = {{"seed", "1"}},
            .options = {{"learning-rate", learning_rate}},
            .companions = companions,
            .keeps_older = keeps_older};
  }

  bool equals(const Training& other) const {
    return arena->masters().equal(other.arena->masters()) &&
           optimizer->first_moment().equal(other.optimizer->first_moment()) &&
           optimizer->second_moment().equal(other.optimizer->second_moment());
  }

  model::DecoderLM model;
  std::optional<model::ParameterArena> arena;
  std::optional<model::AdamW> optimizer;
  model::SourceFormat format;
  std::vector<CompanionFile> companions = {{"tokenizer.json", "{}"}};
  std::string learning_rate = "1e-3";
  bool keeps_older = false;
};

TrainingPosition position(int64_t step, std::optional<double> loss = std::nullopt) {
  TrainingPosition where{
      .step = step, .num_updates = step - 1, .sample_cursor = 8 * step, .num_tokens = 64 * step};
  if (loss.has_value()) where.best = where.evaluated = Evaluation{step, *loss};
  return where;
}

class CheckpointsTest : public ::testing::Test {
 protected:
  using Body = std::function<void(CheckpointStore&, dist::Communicator&)>;

  /// Runs `body` on `world` ranks, each with a store that keeps two.
  void on_ranks(int world, const Body& body) {
    dist::run_local_ranks(world, [&](dist::Communicator& communicator) {
      CheckpointStore store(folder_.path(), /*num_kept=*/2, communicator);
      body(store, communicator);
    });
  }
  void on_one_rank(const Body& body) { on_ranks(1, body); }

  /// Checkpoints of steps, of a run whose weights depend on the step.
  void save(const std::vector<TrainingPosition>& positions, int world = 1) {
    on_ranks(world, [&](CheckpointStore& store, dist::Communicator&) {
      for (const TrainingPosition& where : positions)
        store.save(Training(static_cast<uint64_t>(where.step)).content(), where);
    });
  }

  /// Saving throws ErrorType, with `words`.
  template <class ErrorType>
  static void expect_failure(CheckpointStore& store,
                             const CheckpointContent& content,
                             const std::string& words) {
    try {
      store.save(content, position(2));
      ADD_FAILURE() << "saved";
    } catch (const ErrorType& error) {
      EXPECT_THAT(error.what(), HasSubstr("checkpoint not saved: rank "));
      EXPECT_THAT(error.what(), HasSubstr(words));
    }
  }

  /// One byte of a file is another.
  void damage(const std::string& checkpoint, const std::string& file) const {
    const fs::path path = folder_.path() / checkpoint / file;
    std::string bytes = read_file(path);
    bytes[bytes.size() / 2] = static_cast<char>(bytes[bytes.size() / 2] ^ 1);
    test::write_text(path, bytes);
  }

  std::string link(const char* name) const {
    std::error_code error;
    return fs::read_symlink(folder_.path() / name, error).string();
  }

  test::TemporaryFolder folder_;
};

TEST_F(CheckpointsTest, WhatIsLoadedIsWhatWasSavedByAnyNumberOfRanks) {
  for (const int writers : {1, 2, 3}) {
    for (const int readers : {1, 2, 3, 4}) {
      const test::TemporaryFolder folder;
      Training saved(5);
      const auto store_on = [&](dist::Communicator& communicator) {
        return CheckpointStore(folder.path(), 2, communicator);
      };
      dist::run_local_ranks(writers, [&](dist::Communicator& communicator) {
        store_on(communicator).save(Training(5).content(), position(5, 1.5));
      });
      dist::run_local_ranks(readers, [&](dist::Communicator& communicator) {
        Training run(9);
        run.learning_rate = "2e-3";
        const auto resumed = store_on(communicator).load(run.content());
        ASSERT_TRUE(resumed.has_value());
        EXPECT_TRUE(run.equals(saved)) << writers << " wrote, " << readers << " read";
        EXPECT_EQ(resumed->position, position(5, 1.5));
        ASSERT_EQ(resumed->changed_options.size(), 1u);
        EXPECT_EQ(text_of(resumed->changed_options, "there"),
                  "learning-rate = 1e-3 there, learning-rate = 2e-3 here");
      });
      EXPECT_EQ(read_file(folder / "step-00000005/tokenizer.json"), "{}");
    }
  }
}

TEST_F(CheckpointsTest, NoneIsNoRunToGoOnWith) {
  on_one_rank([&](CheckpointStore& store, dist::Communicator&) {
    EXPECT_TRUE(store.empty());
    EXPECT_FALSE(store.load(Training(1).content()).has_value());
    store.save(Training(1).content(), position(1));
    EXPECT_FALSE(store.empty());
  });
}

TEST_F(CheckpointsTest, TheNewestTwoAndTheBestStay) {
  save({position(1, 2.0), position(2, 1.0)});
  TrainingPosition later = position(3);
  later.best = Evaluation{2, 1.0};
  save({later});
  later.step = 4;
  save({later});
  later.step = 5;
  save({later});
  EXPECT_THAT(
      folder_.names(),
      UnorderedElementsAre("step-00000002", "step-00000004", "step-00000005", "best", "latest"));
  EXPECT_EQ(link("best"), "step-00000002");
  EXPECT_EQ(link("latest"), "step-00000005");
}

TEST_F(CheckpointsTest, WhatMayHaveDivergedPushesNoneOut) {
  save({position(1), position(2)});
  on_one_rank([&](CheckpointStore& store, dist::Communicator&) {
    Training run(3);
    run.keeps_older = true;
    store.save(run.content(), position(3));
    store.update(run.content(), position(3, 1.0));
  });
  EXPECT_THAT(CheckpointFolder(folder_.path()).steps(), ElementsAre(3, 2, 1));
}

TEST_F(CheckpointsTest, AnEvaluationMovesTheBestAndLetsTheOldOneGo) {
  save({position(1, 2.0)});
  TrainingPosition later = position(2);
  later.best = Evaluation{1, 2.0};
  save({later});
  later = position(3);
  later.best = Evaluation{1, 2.0};
  save({later});
  EXPECT_THAT(CheckpointFolder(folder_.path()).steps(), ElementsAre(3, 2, 1));
  on_ranks(2, [&](CheckpointStore& store, dist::Communicator&) {
    store.update(Training(3).content(), position(3, 1.5));
  });
  EXPECT_EQ(link("best"), "step-00000003");
  EXPECT_THAT(CheckpointFolder(folder_.path()).steps(), ElementsAre(3, 2));
  on_one_rank([&](CheckpointStore& store, dist::Communicator&) {
    const auto resumed = store.load(Training(3).content());
    ASSERT_TRUE(resumed.has_value());
    EXPECT_EQ(resumed->position, position(3, 1.5));
  });
}

TEST_F(CheckpointsTest, ADamagedOneIsSetAsideAndTheOneBeforeIsTaken) {
  for (const char* file : {"model.safetensors", "optimizer-00001-of-00002.safetensors"}) {
    for (const std::string& name : folder_.names()) fs::remove_all(folder_.path() / name);
    save({position(1), position(2, 1.0)}, /*world=*/2);
    damage("step-00000002", file);
    on_ranks(2, [&](CheckpointStore& store, dist::Communicator&) {
      Training run(9);
      const auto resumed = store.load(run.content());
      ASSERT_TRUE(resumed.has_value());
      EXPECT_EQ(resumed->position, position(1));
      EXPECT_TRUE(run.equals(Training(1))) << file;
    });
    EXPECT_THAT(folder_.names(),
                UnorderedElementsAre("damaged-step-00000002", "step-00000001", "best", "latest"));
    EXPECT_EQ(link("latest"), "step-00000001");
    EXPECT_EQ(link("best"), "step-00000001");
  }
}

TEST_F(CheckpointsTest, WhereAllAreDamagedNothingIsTouched) {
  save({position(1), position(2)});
  damage("step-00000001", "model.safetensors");
  damage("step-00000002", "config.json");
  const std::vector<std::string> before = folder_.names();
  on_ranks(2, [&](CheckpointStore& store, dist::Communicator&) {
    Training run(9);
    try {
      store.load(run.content());
      ADD_FAILURE() << "loaded";
    } catch (const DataError& error) {
      EXPECT_THAT(error.what(), HasSubstr("none of the 2 checkpoints in "));
      EXPECT_THAT(error.what(), HasSubstr("nothing was changed"));
    }
  });
  EXPECT_EQ(folder_.names(), before);
}

TEST_F(CheckpointsTest, ARunOfOtherOptionsIsRefusedAndNoneSetAside) {
  save({position(1)});
  on_ranks(2, [&](CheckpointStore& store, dist::Communicator&) {
    Training run(1);
    CheckpointContent other = run.content();
    other.identity = {{"seed", "2"}};
    try {
      store.load(other);
      ADD_FAILURE() << "loaded";
    } catch (const Error& error) {
      EXPECT_EQ(error.exit_code(), ExitCode::kConfig);
      EXPECT_THAT(error.what(), HasSubstr("seed = 1 there, seed = 2 here"));
    }
  });
  EXPECT_THAT(folder_.names(), UnorderedElementsAre("step-00000001", "best", "latest"));
}

TEST_F(CheckpointsTest, LinksAndLeftoversOfAKillAreMended) {
  save({position(1, 1.0), position(2)});
  fs::remove(folder_.path() / "latest");
  fs::remove(folder_.path() / "best");
  fs::create_directory_symlink("step-00000001", folder_.path() / "latest");
  const fs::path half = CheckpointFolder(folder_.path()).make_temporary(3);
  test::write_text(half / "config.json", "{");
  on_one_rank([&](CheckpointStore& store, dist::Communicator&) {
    ASSERT_TRUE(store.load(Training(1).content()).has_value());
  });
  EXPECT_EQ(link("latest"), "step-00000002");
  EXPECT_EQ(link("best"), "step-00000002");  // whose manifest knows of no evaluation
  EXPECT_FALSE(fs::exists(half));
}

TEST_F(CheckpointsTest, ABestThatIsGoneIsForgotten) {
  save({position(1, 1.0)});
  TrainingPosition later = position(2);
  later.best = Evaluation{1, 1.0};
  save({later});
  fs::remove_all(folder_.path() / "step-00000001");
  on_ranks(2, [&](CheckpointStore& store, dist::Communicator&) {
    const auto resumed = store.load(Training(2).content());
    ASSERT_TRUE(resumed.has_value());
    EXPECT_FALSE(resumed->position.best.has_value());
  });
  EXPECT_EQ(link("best"), "step-00000002");
}

TEST_F(CheckpointsTest, WhatCannotBeWrittenLeavesTheOlderOneAlone) {
  save({position(1)});
  const fs::path blocked = folder_.path() / "blocked";
  test::write_text(blocked, "a file where the folder of checkpoints should be");
  dist::run_local_ranks(2, [&](dist::Communicator& communicator) {
    CheckpointStore store(blocked, 2, communicator);
    Training run(2);
    expect_failure<WriteError>(store, run.content(), "cannot create");
  });
  on_ranks(2, [&](CheckpointStore& store, dist::Communicator& communicator) {
    Training run(2);
    if (communicator.rank() == 0) run.companions.push_back({"no/such/folder", ""});
    EXPECT_THROW(store.save(run.content(), position(2)), WriteError);
  });
  EXPECT_THAT(folder_.names(), UnorderedElementsAre("step-00000001", "best", "latest", "blocked"));
}

// Not forgiven: what is broken stays broken, and every save would cost the run's time.
TEST_F(CheckpointsTest, ABugIsNoFullDisk) {
  on_ranks(2, [&](CheckpointStore& store, dist::Communicator&) {
    Training run(2);
    model::DecoderLM without_memory(test::tiny_config("llama"), torch::kMeta);
    const CheckpointContent broken{
        without_memory, run.format, *run.optimizer, {{"seed", "1"}}, {}, run.companions};
    expect_failure<ContractError>(store, broken, "");
  });
  EXPECT_TRUE(folder_.names().empty());
}

}  // namespace
}  // namespace t2r::launch
