#include "data/shard_seal.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/resource.h>

#include <filesystem>
#include <string>
#include <vector>

#include "base/durable_file.h"
#include "base/error.h"
#include "base/hash.h"
#include "data/corpus.h"
#include "data/h5_file.h"
#include "tests/data_shards.h"
#include "tests/support.h"

namespace t2r::data {
namespace {

using test::count_up;
using test::message_of;
using test::read_all;
using test::TemporaryFolder;
using test::write_shard;
using test::write_text;
using ::testing::AllOf;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::Not;

/// A shard as versions before the seal wrote it: HDF5 data from the first byte on.
void write_unsealed_shard(const std::filesystem::path& path) {
  const std::vector<uint16_t> tokens = {1, 2, 3};
  const std::vector<uint64_t> offsets = {0, 1, 3};
  Hasher hasher;
  hasher.update(tokens.data(), tokens.size() * sizeof(tokens[0]));
  hasher.update(offsets.data(), offsets.size() * sizeof(offsets[0]));
  H5File file = H5File::create(path);
  file.write_attribute("schema", std::string(kShardSchema));
  file.write_attribute("schema_version", kShardSchemaVersion);
  file.write_attribute("vocab_size", int64_t{100});
  file.write_attribute("tokenizer_hash", std::string("h"));
  file.write_attribute("num_tokens", int64_t{3});
  file.write_attribute("num_documents", int64_t{2});
  file.write_attribute("num_words", int64_t{0});
  file.write_attribute("num_bytes", int64_t{0});
  file.write_attribute("content_hash", hasher.hex());
  file.create_dataset("tokens", H5Integer::kUint16, 3);
  file.write_elements("tokens", 0, 3, tokens.data());
  file.create_dataset("document_offsets", H5Integer::kUint64, 3);
  file.write_elements("document_offsets", 0, 3, offsets.data());
  file.close();
}

TEST(ShardSeal, NoFlippedByteOfAShardReachesHdf5) {
  const TemporaryFolder folder;
  const std::filesystem::path path = folder / "a.h5";
  write_shard(path, {count_up(0, 20), count_up(20, 30)}, 100);
  const std::string bytes = read_file(path);
  for (size_t position = 0; position < bytes.size(); position += position < 600 ? 1 : 7) {
    std::string damaged = bytes;
    damaged[position] = static_cast<char>(damaged[position] ^ 1 << position % 8);
    write_text(path, damaged);
    ASSERT_THAT(message_of<DataError>([&] { Corpus({path}); }),
                AllOf(HasSubstr(path.string()), HasSubstr("damaged"), Not(HasSubstr("HDF5"))))
        << "byte " << position;
  }
}

TEST(ShardSeal, IsReadableAndSaysWhatItCovers) {
  const TemporaryFolder folder;
  write_shard(folder / "a.h5", {count_up(0, 20)}, 100);
  const std::string bytes = read_file(folder / "a.h5");
  const std::string rest = bytes.substr(static_cast<size_t>(kSealBytes));
  EXPECT_EQ(bytes.substr(0, bytes.find('\0')),
            concat("t2r shard 1\nbytes ",
                   bytes.size(),
                   "\nxxh3-128 ",
                   hash_bytes(rest.data(), rest.size()),
                   "\n"));
  EXPECT_EQ(rest.substr(0, 4), "\x89HDF");
}

TEST(ShardSeal, TruncationAndAppendedBytesAreSeenWithoutVerifying) {
  const TemporaryFolder folder;
  write_shard(folder / "a.h5", {count_up(0, 2000)});
  const std::string bytes = read_file(folder / "a.h5");
  for (const std::string& other : {bytes + "x", bytes.substr(0, bytes.size() - 1)}) {
    write_text(folder / "a.h5", other);
    EXPECT_THAT(message_of<DataError>([&] { Corpus({folder / "a.h5"}, {.verify = false}); }),
                AllOf(HasSubstr("a.h5"), HasSubstr("damaged")));
  }
}

TEST(ShardSeal, ShardsOfEarlierVersionsAreReadAndCounted) {
  const TemporaryFolder folder;
  write_unsealed_shard(folder / "a.h5");
  const Corpus corpus({folder / "a.h5"});
  EXPECT_THAT(read_all(corpus), ElementsAre(1, 2, 3));
  EXPECT_EQ(corpus.num_unsealed(), 1);
  write_shard(folder / "b.h5", {{1}});
  EXPECT_EQ(Corpus({folder / "b.h5"}).num_unsealed(), 0);
}

TEST(ShardSeal, DamagedShardsOfEarlierVersionsNeverGiveOtherContent) {
  const TemporaryFolder folder;
  const std::filesystem::path path = folder / "a.h5";
  write_unsealed_shard(path);
  const std::string bytes = read_file(path);
  size_t num_refused = 0, num_tried = 0;
  for (size_t position = 0; position < bytes.size(); position += position < 600 ? 1 : 7) {
    ++num_tried;
    std::string damaged = bytes;
    damaged[position] = static_cast<char>(damaged[position] ^ 1 << position % 8);
    write_text(path, damaged);
    try {
      ASSERT_THAT(read_all(Corpus({path})), ElementsAre(1, 2, 3)) << "byte " << position;
    } catch (const DataError& error) {
      ASSERT_THAT(error.what(), HasSubstr(path.string())) << "byte " << position;
      ++num_refused;
    }
  }
  EXPECT_GT(num_refused, num_tried / 4);
}

TEST(ShardSeal, ChecksTheSuperblockOfAnUnsealedFileBeforeHdf5) {
  const TemporaryFolder folder;
  const std::filesystem::path path = folder / "a.h5";
  write_unsealed_shard(path);
  const std::string bytes = read_file(path);
  const auto refusal = [&](size_t position, char byte) {
    std::string damaged = bytes;
    damaged[position] = byte;
    write_text(path, damaged);
    return message_of<DataError>([&] { Corpus({path}); });
  };
  EXPECT_THAT(refusal(8, 9), HasSubstr("superblock: version 9, known are 0 to 3"));
  EXPECT_THAT(refusal(9, 4), HasSubstr("superblock: addresses must have 8 bytes"));
  EXPECT_THAT(refusal(12, 1), HasSubstr("superblock: the base address must be 0"));
  EXPECT_THAT(refusal(31, 1), HasSubstr("superblock: it says that the file has"));
  write_text(path, bytes.substr(0, 40));
  EXPECT_THAT(message_of<DataError>([&] { Corpus({path}); }), HasSubstr("the file ends before"));
}

TEST(ShardSeal, SaysWhatAFileIsThatIsNoShard) {
  const TemporaryFolder folder;
  const auto refusal = [&](const std::string& content) {
    write_text(folder / "a.h5", content);
    return message_of<DataError>([&] { Corpus({folder / "a.h5"}); });
  };
  EXPECT_THAT(refusal("A text.\n"), AllOf(HasSubstr("is text"), HasSubstr("t2r prepare lm")));
  EXPECT_THAT(refusal(std::string(2000, 'a')), HasSubstr("is text"));
  EXPECT_THAT(refusal(""), HasSubstr("is empty"));
  EXPECT_THAT(refusal(std::string("PK\3\4", 4)), HasSubstr("is not a shard of tokens"));
}

TEST(Corpus, KeepsAndChecksTheTokenThatBeginsDocuments) {
  const TemporaryFolder folder;
  const auto write = [&](const char* name, std::optional<int32_t> begin) {
    CorpusWriter writer(folder / name, {100, "h", "a.txt", begin});
    writer.append({1, 2});
    writer.end_document();
    writer.commit();
  };
  write("a.h5", 1);
  write("b.h5", {});
  EXPECT_EQ(Corpus({folder / "a.h5"}).begin_of_text(), 1);
  EXPECT_EQ(Corpus({folder / "b.h5"}).begin_of_text(), std::nullopt);
  EXPECT_THAT(message_of<DataError>([&] { Corpus({folder.path()}); }),
              AllOf(HasSubstr((folder / "b.h5").string()),
                    HasSubstr("documents begin with token 1"),
                    HasSubstr("--begin-of-text")));
}

/// Runs `action` in a child process that may have `num_files` open, and no more.
template <class Action>
void with_file_limit(rlim_t num_files, const Action& action) {
  EXPECT_EXIT(
      {
        rlimit limit{};
        limit.rlim_cur = limit.rlim_max = num_files;
        ::setrlimit(RLIMIT_NOFILE, &limit);
        action();
        std::exit(testing::Test::HasFailure() ? 1 : 0);
      },
      testing::ExitedWithCode(0),
      "");
}

TEST(Corpus, ReadsMoreShardsThanFilesMayBeOpen) {
  const TemporaryFolder folder;
  for (int32_t i = 0; i < 100; ++i) write_shard(folder / concat(1000 + i, ".h5"), {{i}});
  with_file_limit(64, [&] {
    const Corpus corpus({folder.path()});
    const std::vector<int64_t> tokens = read_all(corpus);
    ASSERT_EQ(tokens.size(), 100u);
    for (int64_t i = 0; i < 100; ++i) EXPECT_EQ(tokens[static_cast<size_t>(i)], i);
  });
}

TEST(Corpus, SaysSoWhenAShardThatWasClosedMeanwhileIsReplaced) {
  const TemporaryFolder folder;
  for (int32_t i = 0; i < 100; ++i) write_shard(folder / concat(1000 + i, ".h5"), {{i}});
  with_file_limit(64, [&] {
    const Corpus corpus({folder.path()});
    write_shard(folder / "1099.h5", {{5}});
    EXPECT_THAT(message_of<DataError>([&] { read_all(corpus); }),
                AllOf(HasSubstr("1099.h5"), HasSubstr("was replaced or changed")));
  });
}

TEST(Corpus, RaisesTheSoftLimitForItsShards) {
  const TemporaryFolder folder;
  for (int32_t i = 0; i < 100; ++i) write_shard(folder / concat(1000 + i, ".h5"), {{i}});
  EXPECT_EXIT(
      {
        rlimit limit{};
        limit.rlim_cur = 64;
        limit.rlim_max = 600;
        ::setrlimit(RLIMIT_NOFILE, &limit);
        const Corpus corpus({folder.path()});
        ::getrlimit(RLIMIT_NOFILE, &limit);
        std::exit(limit.rlim_cur >= 400 && corpus.num_tokens() == 100 ? 0 : 1);
      },
      testing::ExitedWithCode(0),
      "");
}

}  // namespace
}  // namespace t2r::data
