#include "launch/train/run_folder.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <atomic>
#include <filesystem>
#include <string>

#include "base/durable_file.h"
#include "base/error.h"
#include "base/text.h"
#include "dist/local_communicator.h"
#include "tests/support.h"

namespace t2r::launch {
namespace {

namespace fs = std::filesystem;
using ::testing::HasSubstr;

/// Whether a run can have the folder now, on every one of `world` ranks or on none.
bool is_free(const fs::path& folder, int world = 1) {
  std::atomic<int> num_refused = 0;
  dist::run_local_ranks(world, [&](dist::Communicator& communicator) {
    try {
      const RunFolder run(folder, communicator);
    } catch (const Error& error) {
      EXPECT_EQ(error.exit_code(), ExitCode::kCannotWrite);
      EXPECT_THAT(error.what(), HasSubstr("another run is using this folder"));
      EXPECT_THAT(error.what(), HasSubstr("choose another --output"));
      ++num_refused;
    }
  });
  EXPECT_TRUE(num_refused == 0 || num_refused == world) << num_refused;
  return num_refused == 0;
}

TEST(RunFolder, IsMadeAndHeldByOneRunOnAllItsRanks) {
  const test::TemporaryFolder root;
  const fs::path folder = root / "a/b";
  dist::run_local_ranks(2, [&](dist::Communicator& communicator) {
    const RunFolder run(folder, communicator);
    EXPECT_EQ(run.path(), folder);
    EXPECT_EQ(run.checkpoints(), folder / "checkpoints");
    communicator.barrier();
    if (communicator.rank() == 0) EXPECT_FALSE(is_free(folder, 2));
    communicator.barrier();
  });
  EXPECT_TRUE(is_free(folder, 2));
}

TEST(RunFolder, NamesTheProcessThatHoldsIt) {
  const test::TemporaryFolder root;
  dist::run_local_ranks(1, [&](dist::Communicator& communicator) {
    const RunFolder run(root / "run", communicator);
    EXPECT_EQ(read_file(root / "run/lock").find(concat("process ", ::getpid(), " on ")), 0u);
    try {
      const RunFolder second(root / "run", communicator);
      ADD_FAILURE() << "two runs on one folder";
    } catch (const Error& error) {
      EXPECT_THAT(error.what(), HasSubstr(concat("(process ", ::getpid(), " on ")));
    }
  });
}

TEST(RunFolder, IsHeldThoughItsLockFileIsRemoved) {
  const test::TemporaryFolder root;
  dist::run_local_ranks(1, [&](dist::Communicator& communicator) {
    const RunFolder run(root / "run", communicator);
    fs::remove(root / "run/lock");
    EXPECT_FALSE(is_free(root / "run"));
  });
  EXPECT_TRUE(is_free(root / "run"));
}

TEST(RunFolder, WhereNoneCanBeMadeEveryRankIsTold) {
  const test::TemporaryFolder root;
  root.write("file", "no folder");
  dist::run_local_ranks(3, [&](dist::Communicator& communicator) {
    try {
      const RunFolder run(root / "file/run", communicator);
      ADD_FAILURE() << "made";
    } catch (const Error& error) {
      EXPECT_EQ(error.exit_code(), ExitCode::kCannotWrite);
      EXPECT_THAT(error.what(), HasSubstr("file/run: cannot create"));
    }
  });
}

TEST(RunFolder, SaysWhichOptionsAStartHasOtherwise) {
  const test::TemporaryFolder root;
  const std::string first =
      "steps = 10\n# tokens = 0\nseed = 1\n\n[model]\nlayers = 2\nheads = 4\n";
  EXPECT_EQ(replace_config(root.path(), first), "");
  EXPECT_EQ(replace_config(root.path(), first), "");
  const std::string second =
      "steps = 20\ntokens = 5\nseed = 1\n\n[model]\nlayers = 2\nheads = 8\nsteps = 7\n";
  EXPECT_EQ(replace_config(root.path(), second), "model.heads: 4 -> 8; steps: 10 -> 20");
  EXPECT_EQ(read_file(root / "config.toml"), second);
}

}  // namespace
}  // namespace t2r::launch
