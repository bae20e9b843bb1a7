#include "data/corpus.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>
#include <random>
#include <string>
#include <vector>

#include "base/durable_file.h"
#include "base/error.h"
#include "base/hash.h"
#include "data/corpus_writer.h"
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

std::vector<int64_t> read_offsets(const Corpus& corpus, int64_t first, int64_t count) {
  std::vector<int64_t> offsets(static_cast<size_t>(count));
  corpus.read_document_offsets(first, count, offsets.data());
  return offsets;
}

TEST(Corpus, ReadsShardsOfAFolderAsOneSequenceInOrderOfNames) {
  const TemporaryFolder folder;
  write_shard(folder / "b.h5", {count_up(5, 4), count_up(9, 1)});
  write_shard(folder / "a.h5", {count_up(0, 2), count_up(2, 3)});
  write_text(folder / "notes.txt", "no shard");
  const Corpus corpus({folder.path()});
  EXPECT_EQ(corpus.num_tokens(), 10);
  EXPECT_EQ(corpus.num_documents(), 4);
  EXPECT_EQ(corpus.vocab_size(), 50257);
  EXPECT_EQ(corpus.tokenizer_hash(), "tokenizer-a");
  EXPECT_THAT(read_all(corpus), ElementsAre(0, 1, 2, 3, 4, 5, 6, 7, 8, 9));
  EXPECT_THAT(read_offsets(corpus, 0, 5), ElementsAre(0, 2, 5, 9, 10));
  for (int64_t begin = 0; begin <= 10; ++begin) {
    for (int64_t count = 0; begin + count <= 10; ++count) {
      std::vector<int64_t> part(static_cast<size_t>(count) + 1, -1);
      corpus.read(begin, count, part.data());
      for (int64_t i = 0; i < count; ++i) ASSERT_EQ(part[static_cast<size_t>(i)], begin + i);
      ASSERT_EQ(part.back(), -1) << "wrote past the end of what was asked for";
    }
  }
}

TEST(Corpus, ReadsAnyRangeOfDocumentOffsets) {
  const TemporaryFolder folder;
  write_shard(folder / "a.h5", {count_up(0, 2), count_up(2, 3)});
  write_shard(folder / "b.h5", {count_up(5, 4), count_up(9, 1)});
  const Corpus corpus({folder.path()});
  const std::vector<int64_t> all = {0, 2, 5, 9, 10};
  for (int64_t first = 0; first <= 5; ++first) {
    for (int64_t count = 0; first + count <= 5; ++count) {
      EXPECT_EQ(read_offsets(corpus, first, count),
                std::vector<int64_t>(all.begin() + first, all.begin() + first + count));
    }
  }
  EXPECT_THROW(read_offsets(corpus, 5, 1), ContractError);
}

TEST(Corpus, RefusesRangesOutsideItself) {
  const TemporaryFolder folder;
  write_shard(folder / "a.h5", {count_up(0, 5)});
  const Corpus corpus({folder / "a.h5"});
  std::vector<int64_t> out(10);
  EXPECT_THROW(corpus.read(-1, 2, out.data()), ContractError);
  EXPECT_THROW(corpus.read(0, 6, out.data()), ContractError);
  EXPECT_THROW(corpus.read(6, 0, out.data()), ContractError);
  EXPECT_THROW(corpus.read(3, INT64_MAX, out.data()), ContractError);
}

TEST(Corpus, KeepsListedOrderAndCounts) {
  const TemporaryFolder folder;
  {
    CorpusWriter writer(folder / "a.h5", {100, "tokenizer-a", "a.txt"});
    writer.append({1});
    writer.end_document();
    writer.add_source_text(3, 20);
    writer.add_source_text(4, 30);
    writer.commit();
  }
  write_shard(folder / "b.h5", {{2}}, 100);
  const Corpus corpus({folder / "b.h5", folder / "a.h5"});
  EXPECT_THAT(read_all(corpus), ElementsAre(2, 1));
  EXPECT_EQ(corpus.num_words(), 7);
  EXPECT_EQ(corpus.num_bytes(), 50);
  EXPECT_NE(corpus.content_hash(), Corpus({folder.path()}).content_hash());
}

TEST(Corpus, StoresFourBytesPerIdAboveSixteenBits) {
  const TemporaryFolder folder;
  write_shard(folder / "narrow.h5", {{65535}}, 65536);
  write_shard(folder / "wide.h5", {{65536, 65537, 0}}, 65538);
  EXPECT_EQ(H5File::open(folder / "narrow.h5").find_dataset("tokens").type, H5Integer::kUint16);
  EXPECT_EQ(H5File::open(folder / "wide.h5").find_dataset("tokens").type, H5Integer::kUint32);
  EXPECT_THAT(read_all(Corpus({folder / "narrow.h5"})), ElementsAre(65535));
  EXPECT_THAT(read_all(Corpus({folder / "wide.h5"})), ElementsAre(65536, 65537, 0));
}

TEST(Corpus, ReadsMoreThanOneBlock) {
  const TemporaryFolder folder;
  std::mt19937 random(1);
  std::vector<int32_t> ids(1'000'003);
  for (int32_t& id : ids) id = static_cast<int32_t>(random() % 70000);
  write_shard(folder / "a.h5", {ids}, 70000);
  const Corpus corpus({folder / "a.h5"});
  EXPECT_EQ(read_all(corpus), std::vector<int64_t>(ids.begin(), ids.end()));
}

TEST(Corpus, SaysWhatIsMissing) {
  const TemporaryFolder folder;
  EXPECT_THAT(message_of<ConfigError>([&] { Corpus({folder / "none.h5"}); }),
              HasSubstr((folder / "none.h5").string() + ": does not exist"));
  EXPECT_THAT(message_of<ConfigError>([&] { Corpus({folder.path()}); }), HasSubstr("no *.h5"));
  EXPECT_THROW(Corpus(std::vector<std::filesystem::path>{}), ConfigError);
}

TEST(Corpus, RefusesAFolderWithUnfinishedOutput) {
  const TemporaryFolder folder;
  write_shard(folder / "a.h5", {{1}});
  std::filesystem::create_directory(folder / "prepare-rank-0.unfinished");
  EXPECT_THAT(message_of<DataError>([&] { Corpus({folder.path()}); }),
              HasSubstr("prepare-rank-0.unfinished"));
}

TEST(Corpus, RefusesShardsOfAnotherTokenizer) {
  const TemporaryFolder folder;
  write_shard(folder / "a.h5", {{1}}, 100, "tokenizer-a");
  write_shard(folder / "b.h5", {{1}}, 100, "tokenizer-b");
  EXPECT_THAT(message_of<DataError>([&] { Corpus({folder.path()}); }),
              AllOf(HasSubstr((folder / "b.h5").string()),
                    HasSubstr((folder / "a.h5").string()),
                    HasSubstr("tokenizer-a"),
                    HasSubstr("tokenizer-b")));
  write_shard(folder / "b.h5", {{1}}, 101, "tokenizer-a");
  EXPECT_THAT(message_of<DataError>([&] { Corpus({folder.path()}); }),
              AllOf(HasSubstr("vocab_size 100"), HasSubstr("vocab_size 101")));
}

/// A shard written attribute by attribute, so that each rule can be broken.
struct HandmadeShard {
  std::string schema = "t2r-lm";
  int64_t schema_version = 1;
  int64_t vocab_size = 100;
  int64_t num_tokens = 3;
  int64_t num_documents = 2;
  H5Integer token_type = H5Integer::kUint16;
  std::vector<uint16_t> tokens = {1, 2, 3};
  std::vector<uint64_t> offsets = {0, 1, 3};

  void write(const std::filesystem::path& path) const {
    Hasher hasher;
    hasher.update(tokens.data(), tokens.size() * sizeof(tokens[0]));
    hasher.update(offsets.data(), offsets.size() * sizeof(offsets[0]));
    H5File file = H5File::create(path);
    file.write_attribute("schema", schema);
    file.write_attribute("schema_version", schema_version);
    file.write_attribute("vocab_size", vocab_size);
    file.write_attribute("tokenizer_hash", std::string("h"));
    file.write_attribute("num_tokens", num_tokens);
    file.write_attribute("num_documents", num_documents);
    file.write_attribute("num_words", int64_t{0});
    file.write_attribute("num_bytes", int64_t{0});
    file.write_attribute("content_hash", hasher.hex());
    file.create_dataset("tokens", token_type, static_cast<int64_t>(tokens.size()));
    file.write_elements("tokens", 0, static_cast<int64_t>(tokens.size()), tokens.data());
    file.create_dataset(
        "document_offsets", H5Integer::kUint64, static_cast<int64_t>(offsets.size()));
    file.write_elements(
        "document_offsets", 0, static_cast<int64_t>(offsets.size()), offsets.data());
    file.close();
  }
};

std::string refusal_of(const HandmadeShard& shard) {
  const TemporaryFolder folder;
  shard.write(folder / "handmade.h5");
  const std::string message = message_of<DataError>([&] { Corpus({folder / "handmade.h5"}); });
  EXPECT_THAT(message, HasSubstr((folder / "handmade.h5").string()));
  return message;
}

TEST(Corpus, AcceptsTheHandmadeShardThatBreaksNoRule) {
  const TemporaryFolder folder;
  HandmadeShard{}.write(folder / "handmade.h5");
  EXPECT_THAT(read_all(Corpus({folder / "handmade.h5"})), ElementsAre(1, 2, 3));
}

TEST(Corpus, NamesTheRuleThatAShardBreaks) {
  EXPECT_THAT(refusal_of({.schema = "t2r-mt"}), HasSubstr("schema is \"t2r-mt\""));
  EXPECT_THAT(refusal_of({.schema_version = 2}),
              HasSubstr("schema_version is 2, this program reads 1"));
  EXPECT_THAT(refusal_of({.vocab_size = 0}), HasSubstr("vocab_size is 0"));
  EXPECT_THAT(refusal_of({.vocab_size = 70000}), HasSubstr("vocab_size 70000 needs 4"));
  EXPECT_THAT(refusal_of({.num_tokens = 4}), HasSubstr("num_tokens is 4 and /tokens has 3"));
  EXPECT_THAT(refusal_of({.num_documents = 3}), HasSubstr("num_documents is 3"));
  EXPECT_THAT(refusal_of({.vocab_size = 3}), HasSubstr("largest token id is 3"));
  EXPECT_THAT(refusal_of({.offsets = {0, 3, 3}}), HasSubstr("increase strictly"));
  EXPECT_THAT(refusal_of({.offsets = {1, 2, 3}}), HasSubstr("increase strictly"));
  EXPECT_THAT(refusal_of({.offsets = {0, 1, 2}}), HasSubstr("increase strictly"));
}

TEST(Corpus, NamesAnIdOutsideTheVocabularyWhenReadingUnverified) {
  const TemporaryFolder folder;
  HandmadeShard{.vocab_size = 3}.write(folder / "handmade.h5");
  const Corpus corpus({folder / "handmade.h5"}, {.verify = false});
  EXPECT_THAT(message_of<DataError>([&] { read_all(corpus); }),
              AllOf(HasSubstr("handmade.h5"), HasSubstr("token 2 has id 3")));
}

TEST(Corpus, DetectsAFlippedTokenAndNamesTheShard) {
  const TemporaryFolder folder;
  write_shard(folder / "good.h5", {count_up(0, 1000)});
  write_shard(folder / "hurt.h5", {count_up(0, 1000)});
  const int64_t offset = H5File::open(folder / "hurt.h5").find_dataset("tokens").file_offset;
  std::string bytes = read_file(folder / "hurt.h5");
  bytes[static_cast<size_t>(offset) + 1234] ^= 0x01;
  write_text(folder / "hurt.h5", bytes);
  EXPECT_THAT(message_of<DataError>([&] { Corpus({folder.path()}); }),
              AllOf(HasSubstr((folder / "hurt.h5").string()), HasSubstr("damaged")));
}

void write_byte(const std::filesystem::path& path, size_t position, char byte) {
  std::fstream file(path, std::ios::binary | std::ios::in | std::ios::out);
  file.seekp(static_cast<std::streamoff>(position)).put(byte);
}

TEST(Corpus, NeverGivesOtherContentWhenAnyByteOfAShardIsFlipped) {
  const TemporaryFolder folder;
  const std::filesystem::path path = folder / "a.h5";
  write_shard(path, {count_up(0, 20), count_up(20, 30)}, 100);
  const std::string bytes = read_file(path);
  const std::vector<int64_t> tokens = read_all(Corpus({path}));
  size_t num_harmless = 0;
  for (size_t position = 0; position < bytes.size(); ++position) {
    write_byte(path, position, static_cast<char>(bytes[position] ^ 1 << position % 8));
    try {
      const Corpus corpus({path});
      ASSERT_EQ(read_all(corpus), tokens) << "byte " << position;
      ASSERT_EQ(read_offsets(corpus, 0, 3), (std::vector<int64_t>{0, 20, 50}));
      ASSERT_EQ(corpus.tokenizer_hash(), "tokenizer-a");
      ASSERT_EQ(corpus.vocab_size(), 100);
      ASSERT_EQ(corpus.num_words(), 0);
      ++num_harmless;
    } catch (const DataError& error) {
      ASSERT_THAT(error.what(), HasSubstr(path.string())) << "byte " << position;
    }
    write_byte(path, position, bytes[position]);
  }
  // What is not detected is padding between blocks, which nothing reads.
  EXPECT_LT(num_harmless, bytes.size() / 2) << "of " << bytes.size();
}

TEST(Corpus, DetectsTruncationAtAnyLength) {
  const TemporaryFolder folder;
  const std::filesystem::path path = folder / "a.h5";
  write_shard(path, {count_up(0, 2000)});
  const std::string bytes = read_file(path);
  for (size_t size = 0; size < bytes.size();
       size += size < 64 || size + 64 > bytes.size() ? 1 : 61) {
    write_text(path, std::string_view(bytes).substr(0, size));
    for (const bool verify : {true, false}) {
      ASSERT_THAT(message_of<DataError>([&] { Corpus({path}, {.verify = verify}); }),
                  HasSubstr(path.string()))
          << size << " of " << bytes.size() << " bytes";
    }
  }
}

TEST(Corpus, SaysSoWhenAShardShrinksWhileOpen) {
  const TemporaryFolder folder;
  write_shard(folder / "a.h5", {count_up(0, 5000)});
  const Corpus corpus({folder.path()});
  std::filesystem::resize_file(folder / "a.h5", 3000);
  EXPECT_THAT(message_of<DataError>([&] { read_all(corpus); }),
              AllOf(HasSubstr("a.h5"), HasSubstr("the file ends before")));
}

}  // namespace
}  // namespace t2r::data
