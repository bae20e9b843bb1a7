#include "data/corpus_writer.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <signal.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cstdint>
#include <cstdlib>
#include <filesystem>
#include <random>
#include <string>
#include <vector>

#include "base/durable_file.h"
#include "base/error.h"
#include "data/corpus.h"
#include "tests/data_shards.h"
#include "tests/support.h"

namespace t2r::data {
namespace {

using test::count_up;
using test::message_of;
using test::read_all;
using test::TemporaryFolder;
using test::write_shard;
using ::testing::AllOf;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;

TEST(CorpusWriter, LeavesNothingWithoutCommit) {
  const TemporaryFolder folder;
  {
    CorpusWriter writer(folder / "a.h5", {100, "h", "a.txt"});
    writer.append(std::vector<int32_t>(1'000'000, 1));
    writer.end_document();
    EXPECT_THAT(folder.names(), IsEmpty());
  }
  EXPECT_THAT(folder.names(), IsEmpty());
}

TEST(CorpusWriter, RefusesIdsOutsideTheVocabulary) {
  const TemporaryFolder folder;
  CorpusWriter writer(folder / "a.h5", {100, "h", "novel.txt"});
  writer.append({99});
  EXPECT_THAT(message_of<DataError>([&] {
                writer.append({5, 100});
              }),
              AllOf(HasSubstr("a.h5"),
                    HasSubstr("novel.txt"),
                    HasSubstr("token id 100"),
                    HasSubstr("vocab_size = 100")));
  EXPECT_THROW(writer.append({-1}), DataError);
  EXPECT_THROW(CorpusWriter(folder / "b.h5", {0, "h", "b"}), ConfigError);
}

TEST(CorpusWriter, RefusesEmptyAndOpenDocuments) {
  const TemporaryFolder folder;
  CorpusWriter writer(folder / "a.h5", {100, "h", "a.txt"});
  EXPECT_THROW(writer.commit(), ContractError);
  EXPECT_THROW(writer.end_document(), ContractError);
  writer.append({1});
  EXPECT_THROW(writer.commit(), ContractError);
  writer.end_document();
  EXPECT_THROW(writer.end_document(), ContractError);
  writer.commit();
  EXPECT_THROW(writer.commit(), ContractError);
  EXPECT_THROW(writer.append({1}), ContractError);
}

TEST(CorpusWriter, WritesTheSameBytesForTheSameContent) {
  const TemporaryFolder folder;
  write_shard(folder / "a.h5", {count_up(0, 100)});
  test::sleep_us(1'100'000);  // HDF5's time stamps count seconds
  write_shard(folder / "b.h5", {count_up(0, 100)});
  EXPECT_EQ(read_file(folder / "a.h5"), read_file(folder / "b.h5"));
}

TEST(CorpusWriter, ReplacesAShardAsAWhole) {
  const TemporaryFolder folder;
  write_shard(folder / "a.h5", {{1}});
  const Corpus old({folder / "a.h5"});
  write_shard(folder / "a.h5", {{2, 3}});
  EXPECT_THAT(read_all(old), ElementsAre(1));
  EXPECT_THAT(read_all(Corpus({folder / "a.h5"})), ElementsAre(2, 3));
}

/// Lets no file of this process grow beyond `num_bytes`: writes fail as on a full disk (EFBIG).
class FileSizeLimit {
 public:
  explicit FileSizeLimit(rlim_t num_bytes) {
    ::signal(SIGXFSZ, SIG_IGN);
    ::getrlimit(RLIMIT_FSIZE, &before_);
    const rlimit limit{num_bytes, before_.rlim_max};
    ::setrlimit(RLIMIT_FSIZE, &limit);
  }
  ~FileSizeLimit() {
    ::setrlimit(RLIMIT_FSIZE, &before_);
    ::signal(SIGXFSZ, SIG_DFL);
  }
  FileSizeLimit(const FileSizeLimit&) = delete;
  FileSizeLimit& operator=(const FileSizeLimit&) = delete;

 private:
  rlimit before_{};
};

// 400,000 ids of two bytes: limits below hit the temporary file, HDF5's metadata, its raw data and
// the last bytes of the shard, which is 800,016 bytes and some metadata.
TEST(CorpusWriter, ThrowsAndLeavesNoFileWhenTheDiskIsFull) {
  for (const rlim_t limit : {rlim_t{1}, rlim_t{500'000}, rlim_t{800'000}, rlim_t{801'000}}) {
    const TemporaryFolder folder;
    {
      const FileSizeLimit full(limit);
      EXPECT_THAT(message_of<WriteError>([&] {
                    write_shard(folder / "a.h5", {std::vector<int32_t>(400'000, 7)}, 100);
                  }),
                  AllOf(HasSubstr("a.h5"), HasSubstr("File too large")))
          << "limit " << limit;
    }
    EXPECT_THAT(folder.names(), IsEmpty()) << "limit " << limit;
    write_shard(folder / "a.h5", {std::vector<int32_t>(400'000, 7)}, 100);
    EXPECT_EQ(Corpus({folder / "a.h5"}).num_tokens(), 400'000);
  }
}

// HDF5 crashes in its exit handler when it was not able to close a file.
TEST(CorpusWriter, LetsTheProcessExitInOrderAfterAFullDisk) {
  const TemporaryFolder folder;
  const auto fill_disk = [&] {
    const FileSizeLimit full(800'000);
    try {
      write_shard(folder / "a.h5", {std::vector<int32_t>(400'000, 7)}, 100);
    } catch (const WriteError& error) {
      std::exit(static_cast<int>(error.exit_code()));
    }
  };
  EXPECT_EXIT(fill_disk(), testing::ExitedWithCode(73), "");
}

TEST(CorpusWriter, LeavesAWholeShardOrNoneWhenKilled) {
  const TemporaryFolder folder;
  const std::filesystem::path path = folder / "a.h5";
  std::mt19937 random(7);
  const auto write = [&] { write_shard(path, {std::vector<int32_t>(200'000, 5)}, 100); };
  const int64_t write_us = test::duration_us(write);
  int num_valid = 0;
  for (int trial = 0; trial < 20; ++trial) {
    std::filesystem::remove(path);
    const pid_t child = ::fork();
    ASSERT_GE(child, 0);
    if (child == 0) {
      for (;;) write();
    }
    test::sleep_us(static_cast<int64_t>(random()) % (3 * write_us));
    ::kill(child, SIGKILL);
    ASSERT_EQ(::waitpid(child, nullptr, 0), child);
    if (!std::filesystem::exists(path)) continue;
    ++num_valid;
    EXPECT_EQ(Corpus({path}).num_tokens(), 200'000);
    EXPECT_EQ(Corpus({folder.path()}).num_tokens(), 200'000) << "temporary files must not count";
  }
  EXPECT_GT(num_valid, 0) << "killed too early to test anything";
}

}  // namespace
}  // namespace t2r::data
