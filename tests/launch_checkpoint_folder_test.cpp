#include "launch/checkpoints/checkpoint_folder.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <cerrno>
#include <cmath>
#include <filesystem>
#include <string>
#include <vector>

#include "base/durable_file.h"
#include "base/error.h"
#include "launch/checkpoints/checkpoint_manifest.h"
#include "tests/support.h"

namespace {

int num_syncs_that_work = -1;  // -1: all

}  // namespace

// In place of the C library's: a disk that gives an error from some moment on.
extern "C" int fsync(int descriptor) {
  if (num_syncs_that_work == 0) {
    errno = EIO;
    return -1;
  }
  if (num_syncs_that_work > 0) --num_syncs_that_work;
  return static_cast<int>(::syscall(SYS_fsync, descriptor));
}

namespace t2r::launch {
namespace {

namespace fs = std::filesystem;
using ::testing::ElementsAre;
using ::testing::HasSubstr;

class CheckpointFolderTest : public ::testing::Test {
 protected:
  void make(const std::string& name) const { fs::create_directories(folder_.path() / name); }

  std::string link(const char* name) const {
    std::error_code error;
    return fs::read_symlink(folder_.path() / name, error).string();
  }

  test::TemporaryFolder folder_;
  CheckpointFolder checkpoints_{folder_.path()};
};

TEST(CheckpointName, IsReadOnlyAsItIsWritten) {
  EXPECT_EQ(checkpoint_name(7), "step-00000007");
  EXPECT_EQ(checkpoint_name(123456789), "step-123456789");
  EXPECT_EQ(checkpoint_step("step-00000007"), 7);
  EXPECT_EQ(checkpoint_step("step-123456789"), 123456789);
  for (const char* name : {"step-7",
                           "step-00000007-keep",
                           "step-0123456789",
                           "step--0000007",
                           "step-",
                           "step-+0000007",
                           "step-00000007 ",
                           "Step-00000007",
                           "step-99999999999999999999",
                           "step-0000000x",
                           "latest"})
    EXPECT_FALSE(checkpoint_step(name).has_value()) << name;
}

TEST_F(CheckpointFolderTest, StepsAreInOrderOfTheirNumber) {
  for (const int64_t step : {99999999, 100000000, 3, 20000000}) make(checkpoint_name(step));
  make("step-00000003-keep");
  make("damaged-step-00000005");
  fs::create_directory_symlink("step-00000003", folder_.path() / "step-00000009");
  EXPECT_THAT(checkpoints_.steps(), ElementsAre(100000000, 99999999, 20000000, 3));
  EXPECT_THAT(CheckpointFolder(folder_.path() / "none").steps(), ElementsAre());
}

TEST_F(CheckpointFolderTest, RetentionKeepsTheNewestTheBestAndLaterOnes) {
  for (const int64_t step : {1, 2, 3, 99999999, 100000000, 100000001}) make(checkpoint_name(step));
  TrainingPosition position{.step = 100000000};
  position.best = Evaluation{2, 1.5};
  checkpoints_.remove_old(position, 2);
  EXPECT_THAT(checkpoints_.steps(), ElementsAre(100000001, 100000000, 99999999, 2));
  checkpoints_.remove_old({.step = 2}, 0);
  EXPECT_THAT(checkpoints_.steps(), ElementsAre(100000001, 100000000, 99999999, 2));
}

TEST_F(CheckpointFolderTest, RetentionThatCannotListIsAWarning) {
  test::write_text(folder_.path() / "file", "no folder");
  const CheckpointFolder unlisted(folder_.path() / "file");
  EXPECT_THROW(unlisted.steps(), DataError);
  EXPECT_NO_THROW(unlisted.remove_old({.step = 2}, 1));
}

TEST_F(CheckpointFolderTest, WhatHadTheNameIsSetAside) {
  make("step-00000004");
  test::write_text(folder_.path() / "step-00000004" / "old", "theirs");
  make("damaged-step-00000004");
  const fs::path temporary = checkpoints_.make_temporary(4);
  test::write_text(temporary / "file", "ours");
  EXPECT_TRUE(checkpoints_.publish(temporary, 4));
  EXPECT_EQ(read_file(checkpoints_.checkpoint(4) / "file"), "ours");
  EXPECT_EQ(read_file(folder_.path() / "damaged-step-00000004-2" / "old"), "theirs");
}

TEST_F(CheckpointFolderTest, WhatHasItsNameIsACheckpointThoughItsFolderCannotBeSynced) {
  const fs::path temporary = checkpoints_.make_temporary(4);
  num_syncs_that_work = 1;  // the checkpoint itself
  bool is_durable = true;
  EXPECT_NO_THROW(is_durable = checkpoints_.publish(temporary, 4));
  num_syncs_that_work = -1;
  EXPECT_FALSE(is_durable);
  EXPECT_THAT(checkpoints_.steps(), ElementsAre(4));
}

TEST_F(CheckpointFolderTest, TemporaryFoldersBeginEmpty) {
  const fs::path first = checkpoints_.make_temporary(4);
  test::write_text(first / "left", "by a killed process of this number");
  EXPECT_TRUE(fs::is_empty(checkpoints_.make_temporary(4)));
}

TEST_F(CheckpointFolderTest, LinksFollowThePosition) {
  make("step-00000002");
  make("step-00000004");
  TrainingPosition position{.step = 4};
  checkpoints_.point_links(position);
  EXPECT_EQ(link("latest"), "step-00000004");
  EXPECT_EQ(link("best"), "step-00000004");  // nothing is known to be better
  position.best = Evaluation{2, 1.0};
  checkpoints_.point_links(position);
  EXPECT_EQ(link("best"), "step-00000002");
  EXPECT_EQ(checkpoints_.linked_best(), 2);
  position.best.reset();
  position.evaluated = Evaluation{4, NAN};
  checkpoints_.point_links(position);
  EXPECT_EQ(link("best"), "");
  EXPECT_FALSE(checkpoints_.linked_best().has_value());
}

TEST(TrainingPosition, OnlyAFiniteAndSmallerLossOfItsStepIsTheBest) {
  TrainingPosition position{.step = 4};
  position.evaluated = Evaluation{4, NAN};
  EXPECT_FALSE(position.as_saved().best.has_value());
  position.evaluated = Evaluation{3, 1.0};  // not of what is saved
  EXPECT_FALSE(position.as_saved().best.has_value());
  position.evaluated = Evaluation{4, 2.0};
  EXPECT_EQ(position.as_saved().best, (Evaluation{4, 2.0}));
  position.best = Evaluation{2, 2.0};
  EXPECT_EQ(position.as_saved().best, (Evaluation{2, 2.0}));
  position.evaluated = Evaluation{4, -INFINITY};
  EXPECT_EQ(position.as_saved().best, (Evaluation{2, 2.0}));
}

class CheckpointManifestTest : public ::testing::Test {
 protected:
  CheckpointManifestTest() {
    checkpoint_.position = {.step = 6, .num_updates = 5, .sample_cursor = 48, .num_tokens = 1536};
    checkpoint_.position.best = Evaluation{4, 0.1};
    checkpoint_.position.evaluated = Evaluation{6, NAN};
    checkpoint_.world = 2;
    checkpoint_.identity = {{"seed", "1"}, {"a", "b = c"}};
    for (const char* name : {"config.json", "model.safetensors"}) manifest_.files[name] = {};
    for (const int rank : {0, 1}) manifest_.files[optimizer_part(rank, 2)] = {};
    manifest_.fields = checkpoint_.to_fields();
  }

  CheckpointManifest parsed() const { return parse_checkpoint_manifest(manifest_, 6, "m.json"); }

  /// The message for another value of a field.
  std::string refusal(const std::string& key, const nlohmann::ordered_json& value) const {
    FolderManifest changed = manifest_;
    changed.fields[key] = value;
    try {
      parse_checkpoint_manifest(changed, 6, "m.json");
    } catch (const DataError& error) {
      return error.what();
    }
    return "taken";
  }

  CheckpointManifest checkpoint_;
  FolderManifest manifest_;
};

TEST_F(CheckpointManifestTest, ComesBackAsItWasWritten) {
  const CheckpointManifest read = parsed();
  EXPECT_EQ(read.position.num_updates, 5);
  EXPECT_EQ(read.position.sample_cursor, 48);
  EXPECT_EQ(read.position.num_tokens, 1536);
  EXPECT_EQ(read.position.best, (Evaluation{4, 0.1}));
  EXPECT_EQ(read.position.evaluated->step, 6);
  EXPECT_FALSE(read.position.evaluated->is_finite());
  EXPECT_EQ(read.world, 2);
  EXPECT_EQ(read.identity, checkpoint_.identity);
}

TEST_F(CheckpointManifestTest, EveryFieldHasItsRange) {
  EXPECT_EQ(refusal("step", 6), "taken");
  EXPECT_THAT(refusal("step", 7), HasSubstr("step = 7, allowed: 6"));
  EXPECT_THAT(refusal("num_updates", 7), HasSubstr("num_updates = 7, allowed: 0 to 6"));
  EXPECT_THAT(refusal("num_updates", -1), HasSubstr("allowed: 0 to 6"));
  EXPECT_THAT(refusal("sample_cursor", -1), HasSubstr("sample_cursor = -1"));
  EXPECT_THAT(refusal("sample_cursor", 1.5), HasSubstr("sample_cursor = 1.5"));
  EXPECT_THAT(refusal("sample_cursor", uint64_t{1} << 63), HasSubstr("sample_cursor"));
  EXPECT_THAT(refusal("num_tokens", "3"), HasSubstr("num_tokens"));
  EXPECT_THAT(refusal("world_size", 0), HasSubstr("world_size = 0, allowed: 1 to"));
  EXPECT_THAT(refusal("best", {{"step", 7}, {"loss", 1.0}}), HasSubstr("step = 7"));
  EXPECT_THAT(refusal("best", {{"step", 4}, {"loss", nullptr}}), HasSubstr("a finite loss"));
  EXPECT_THAT(refusal("evaluated", 3), HasSubstr("evaluated = 3"));
  EXPECT_THAT(refusal("identity", {{"seed", 1}}), HasSubstr("identity = 1"));
}

TEST_F(CheckpointManifestTest, ThePartsAreThoseOfItsWorld) {
  EXPECT_THAT(refusal("world_size", 1), HasSubstr("optimizer-00000-of-00001.safetensors"));
  EXPECT_THAT(refusal("world_size", 3), HasSubstr("optimizer-00000-of-00003.safetensors"));
  manifest_.files[optimizer_part(0, 1)] = {};
  EXPECT_THAT(refusal("step", 6), HasSubstr("3 parts of the optimizer"));
  manifest_.files.erase(optimizer_part(0, 1));
  manifest_.files.erase("model.safetensors");
  EXPECT_THAT(refusal("step", 6), HasSubstr("model.safetensors"));
  manifest_.files["model.safetensors.index.json"] = {};
  EXPECT_EQ(refusal("step", 6), "taken");
}

}  // namespace
}  // namespace t2r::launch
