#include "data/prepare_lm.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <signal.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <filesystem>
#include <map>
#include <random>
#include <string>
#include <utility>
#include <vector>

#include "base/durable_file.h"
#include "base/error.h"
#include "data/corpus.h"
#include "tests/data_shards.h"
#include "tests/support.h"

namespace t2r::data {
namespace {

using test::ByteTokenizer;
using test::message_of;
using test::TemporaryFolder;
using test::write_text;
using ::testing::AllOf;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;

const ByteTokenizer kBytes;

/// Text of each document of a corpus of bytes; "|" stands for the end-of-document token.
std::vector<std::string> documents_of(const Corpus& corpus) {
  std::vector<int64_t> offsets(static_cast<size_t>(corpus.num_documents()) + 1);
  corpus.read_document_offsets(0, corpus.num_documents() + 1, offsets.data());
  std::vector<std::string> documents;
  for (size_t d = 0; d + 1 < offsets.size(); ++d) {
    std::vector<int64_t> ids(static_cast<size_t>(offsets[d + 1] - offsets[d]));
    corpus.read(offsets[d], offsets[d + 1] - offsets[d], ids.data());
    std::string text;
    for (const int64_t id : ids) text += id == 256 ? '|' : static_cast<char>(id);
    documents.push_back(text);
  }
  return documents;
}

/// Documents that `text` is cut into.
std::vector<std::string> cut(const std::string& text, PrepareLmOptions options) {
  const TemporaryFolder folder;
  write_text(folder / "in.txt", text);
  options.inputs = {folder / "in.txt"};
  options.output = folder / "out";
  prepare_lm(kBytes, options);
  return documents_of(Corpus({options.output}));
}

TEST(PrepareLm, MakesOneDocumentOfAFile) {
  EXPECT_THAT(cut("a b\n\nc\n", {.document_mode = DocumentMode::kFile}),
              ElementsAre("a b\n\nc\n|"));
}

TEST(PrepareLm, MakesADocumentOfEveryLine) {
  EXPECT_THAT(cut("\na\n \nb\nc", {.document_mode = DocumentMode::kLine}),
              ElementsAre("\na\n \n|", "b\n|", "c|"));
}

TEST(PrepareLm, BeginsDocumentsAfterBlankLines) {
  EXPECT_THAT(cut("a\nb\n\n \t\nc\n\r\nd", {.document_mode = DocumentMode::kBlankLine}),
              ElementsAre("a\nb\n\n \t\n|", "c\n\r\n|", "d|"));
}

TEST(PrepareLm, BeginsDocumentsAtWikitextTitles) {
  const std::string text =
      " \n = First = \n \n text \n \n = = Section = = \n \n more \n = no title = \n \n"
      " = Second <unk> = \n \n end \n";
  EXPECT_THAT(
      cut(text, {.document_mode = DocumentMode::kWikitext}),
      ElementsAre(
          " \n = First = \n \n text \n \n = = Section = = \n \n more \n = no title = \n \n|",
          " = Second <unk> = \n \n end \n|"));
}

TEST(PrepareLm, LeavesOutTheEndTokenWhenTold) {
  EXPECT_THAT(
      cut("a\nb\n", {.document_mode = DocumentMode::kLine, .append_end_of_document = false}),
      ElementsAre("a\n", "b\n"));
}

TEST(PrepareLm, GivesTheSameTextForEveryPieceSize) {
  std::string text;
  for (int line = 0; line < 200; ++line) {
    text += std::string(static_cast<size_t>(line % 23), 'x') +
            " \xC3\xA4\xE2\x82\xAC\xF0\x9F\x98\x80\n";
  }
  // Longer than the block of 256 KiB that is read at once.
  text += std::string(600'000, 'y') + "\n" + std::string(600'000, ' ');
  for (const int64_t size : {4, 5, 7, 16, 100, 1 << 20}) {
    const std::vector<std::string> documents = cut(text, {.max_piece_bytes = size});
    EXPECT_TRUE(documents == std::vector{text + "|"}) << "pieces of " << size << " bytes";
  }
}

/// Keeps what it was asked to encode.
class RecordingTokenizer : public ByteTokenizer {
 public:
  std::vector<int32_t> encode(std::string_view text) const override {
    pieces.emplace_back(text);
    return ByteTokenizer::encode(text);
  }
  mutable std::vector<std::string> pieces;
};

TEST(PrepareLm, CutsLongDocumentsAtLineEndsAndLongLinesAtSpaces) {
  const TemporaryFolder folder;
  write_text(folder / "in.txt",
             "one two\nthree\nfour five six\n\xC3\xA4\xC3\xA4\xC3\xA4\xC3\xA4\xC3\xA4\xC3\xA4\n");
  const RecordingTokenizer tokenizer;
  prepare_lm(tokenizer,
             {.inputs = {folder / "in.txt"}, .output = folder / "out", .max_piece_bytes = 9});
  EXPECT_THAT(tokenizer.pieces,
              ElementsAre("one two\n",
                          "three\n",
                          "four five",
                          " six\n",
                          "\xC3\xA4\xC3\xA4\xC3\xA4\xC3\xA4",
                          "\xC3\xA4\xC3\xA4\n"));
}

TEST(PrepareLm, CountsWordsAndBytesOfTheText) {
  const TemporaryFolder folder;
  const std::string text = " one\ttwo  three\n\nfour-five " + std::string(50, 'x') + "\n";
  write_text(folder / "in.txt", text);
  for (const int64_t piece_bytes : {4, 1000}) {
    const PrepareSummary summary = prepare_lm(kBytes,
                                              {.inputs = {folder / "in.txt"},
                                               .output = folder / "out",
                                               .document_mode = DocumentMode::kLine,
                                               .overwrite = true,
                                               .max_piece_bytes = piece_bytes});
    EXPECT_EQ(summary.num_words, 5);
    EXPECT_EQ(summary.num_bytes, static_cast<int64_t>(text.size()));
    EXPECT_EQ(summary.num_documents, 2);
    EXPECT_EQ(summary.num_tokens, static_cast<int64_t>(text.size()) + 2);
    EXPECT_THAT(summary.shards, ElementsAre(folder / "out" / "in-00000.h5"));
    const Corpus corpus({folder / "out"});
    EXPECT_EQ(corpus.num_words(), 5);
    EXPECT_EQ(corpus.num_bytes(), static_cast<int64_t>(text.size()));
    EXPECT_EQ(corpus.num_documents(), 2);
    EXPECT_EQ(corpus.tokenizer_hash(), "bytes");
    EXPECT_EQ(corpus.vocab_size(), 257);
  }
}

TEST(PrepareLm, EndsAShardAfterTheDocumentThatFillsIt) {
  const TemporaryFolder folder;
  write_text(folder / "in.txt", "aaaa\nbb\nc\nddddddddddddd\n");
  const PrepareSummary summary = prepare_lm(kBytes,
                                            {.inputs = {folder / "in.txt"},
                                             .output = folder / "out",
                                             .document_mode = DocumentMode::kLine,
                                             .tokens_per_shard = 7});
  ASSERT_EQ(summary.shards.size(), 2u);
  EXPECT_THAT(documents_of(Corpus({summary.shards[0]})), ElementsAre("aaaa\n|", "bb\n|"));
  EXPECT_THAT(documents_of(Corpus({summary.shards[1]})), ElementsAre("c\n|", "ddddddddddddd\n|"));
  EXPECT_EQ(Corpus({folder / "out"}).num_words(), 4);
}

/// Inputs of different sizes, with documents in lines.
std::vector<std::filesystem::path> write_inputs(const TemporaryFolder& folder) {
  std::vector<std::filesystem::path> inputs;
  for (int i = 0; i < 7; ++i) {
    std::string text;
    for (int line = 0; line < 10 + i * 37 % 50; ++line)
      text += std::string(line % 9 + 1, 'a') + "\n";
    inputs.push_back(folder / ("input" + std::to_string(i) + ".txt"));
    write_text(inputs.back(), text);
  }
  return inputs;
}

std::map<std::string, std::string> contents_of(const std::filesystem::path& folder) {
  std::map<std::string, std::string> contents;
  for (const auto& entry : std::filesystem::directory_iterator(folder)) {
    contents[entry.path().filename().string()] = read_file(entry.path());
  }
  return contents;
}

/// What each rank of `world` writes.
std::vector<PrepareSummary> prepare_on_ranks(const PrepareLmOptions& options, int world) {
  const LmPlan plan = plan_lm(options);
  clear_lm_output(plan);
  std::vector<StagedLm> ranks;
  for (int rank = world - 1; rank >= 0; --rank)
    ranks.push_back(stage_lm(kBytes, plan, rank, world));
  for (StagedLm& rank : ranks) rank.publish();
  for (StagedLm& rank : ranks) rank.complete();
  std::vector<PrepareSummary> summaries;
  for (const StagedLm& rank : ranks) summaries.push_back(rank.summary());
  return summaries;
}

TEST(PrepareLm, WritesTheSameFilesForEveryWorldSize) {
  const TemporaryFolder folder;
  PrepareLmOptions options{.inputs = write_inputs(folder),
                           .document_mode = DocumentMode::kLine,
                           .tokens_per_shard = 100};
  std::map<int, std::map<std::string, std::string>> contents;
  for (const int world : {1, 3, 10}) {
    options.output = folder / ("out" + std::to_string(world));
    int64_t num_inputs = 0;
    size_t num_shards = 0;
    for (const PrepareSummary& summary : prepare_on_ranks(options, world)) {
      num_inputs += summary.num_inputs;
      num_shards += summary.shards.size();
    }
    contents[world] = contents_of(options.output);
    EXPECT_EQ(num_inputs, 7);
    EXPECT_EQ(contents[world].size(), num_shards);
    EXPECT_GT(num_shards, 10u);
    std::reverse(options.inputs.begin(), options.inputs.end());
  }
  EXPECT_EQ(contents[1], contents[3]);
  EXPECT_EQ(contents[1], contents[10]);
}

TEST(PrepareLm, SharesLargeInputsBetweenRanks) {
  const TemporaryFolder folder;
  std::vector<std::filesystem::path> inputs;
  for (const auto& [name, size] : std::vector<std::pair<std::string, size_t>>{
           {"a", 1000}, {"b", 10}, {"c", 1000}, {"d", 10}}) {
    write_text(folder / name, std::string(size, 'x'));
    inputs.push_back(folder / name);
  }
  for (const PrepareSummary& summary :
       prepare_on_ranks({.inputs = inputs, .output = folder / "out"}, 2)) {
    EXPECT_EQ(summary.num_bytes, 1010);
  }
}

TEST(PrepareLm, ReportsProgressUpToTheEnd) {
  const TemporaryFolder folder;
  write_text(folder / "a.txt", std::string(3'000'000, 'a') + "\n");
  write_text(folder / "b.txt", "b\n");
  std::vector<int64_t> done;
  prepare_lm(kBytes,
             {.inputs = {folder / "a.txt", folder / "b.txt"}, .output = folder / "out"},
             [&](int64_t bytes_done, int64_t bytes_total) {
               EXPECT_EQ(bytes_total, 3'000'003);
               done.push_back(bytes_done);
             });
  EXPECT_TRUE(std::is_sorted(done.begin(), done.end()));
  EXPECT_GE(done.size(), 4u);
  EXPECT_EQ(done.back(), 3'000'003);
}

TEST(PrepareLm, RefusesOldShardsUnlessTold) {
  const TemporaryFolder folder;
  PrepareLmOptions options{.inputs = {folder / "in.txt"},
                           .output = folder / "out",
                           .document_mode = DocumentMode::kLine};
  write_text(folder / "in.txt", "a\nb\nc\n");
  options.tokens_per_shard = 1;
  prepare_lm(kBytes, options);
  const auto before = contents_of(folder / "out");
  ASSERT_EQ(before.size(), 3u);
  test::write_shard(folder / "out" / "other-00000.h5", {{1}}, 257, "bytes");
  EXPECT_THAT(message_of<ConfigError>([&] { prepare_lm(kBytes, options); }),
              AllOf(HasSubstr("in-00000.h5"), HasSubstr("--overwrite")));
  EXPECT_EQ(contents_of(folder / "out").size(), 4u);

  options.overwrite = true;
  options.tokens_per_shard = 0;
  prepare_lm(kBytes, options);
  std::vector<std::string> names;
  for (const auto& [name, content] : contents_of(folder / "out")) names.push_back(name);
  EXPECT_THAT(names, ElementsAre("in-00000.h5", "other-00000.h5"))
      << "-00001 and -00002 of the old run must not stay, other inputs' shards must";
}

TEST(PrepareLm, RefusesAFolderThatAnotherRunWritesTo) {
  const TemporaryFolder folder;
  write_text(folder / "in.txt", "a\n");
  PrepareLmOptions options{.inputs = {folder / "in.txt"}, .output = folder / "out"};
  std::filesystem::create_directories(folder / "out" / "prepare-rank-0.unfinished");
  std::filesystem::create_directories(folder / "out" / "prepare-rank-12.unfinished");
  EXPECT_THAT(message_of<ConfigError>([&] { prepare_lm(kBytes, options); }),
              HasSubstr("prepare-rank-0.unfinished"));
  EXPECT_TRUE(std::filesystem::exists(folder / "out" / "prepare-rank-0.unfinished"));
  options.overwrite = true;
  prepare_lm(kBytes, options);
  EXPECT_EQ(Corpus({folder / "out"}).num_documents(), 1);
}

/// Refusal of an input, after which the output folder must be empty.
template <class Expected>
std::string refusal_of(const Tokenizer& tokenizer, const std::string& text) {
  const TemporaryFolder folder;
  write_text(folder / "larger.txt", std::string(5'000'000, 'a'));
  write_text(folder / "in.txt", text);
  const std::string message = message_of<Expected>([&] {
    prepare_lm(tokenizer,
               {.inputs = {folder / "in.txt", folder / "larger.txt"}, .output = folder / "out"});
  });
  EXPECT_THAT(contents_of(folder / "out"), IsEmpty());
  return message;
}

TEST(PrepareLm, NamesTheInvalidByte) {
  const std::string first(700'000, 'a');
  EXPECT_THAT(refusal_of<DataError>(kBytes, first + "\nb\xFF"),
              AllOf(HasSubstr("in.txt: byte 700002 is not valid UTF-8"),
                    HasSubstr("--allow-invalid-utf8")));
  EXPECT_THAT(refusal_of<DataError>(kBytes, "a\xC3"), HasSubstr("byte 1 "));
  EXPECT_THAT(cut("a\xFF\n", {.allow_invalid_utf8 = true}), ElementsAre("a\xFF\n|"));
}

TEST(PrepareLm, LeavesOutInputsWithoutTokensAndNamesThem) {
  const TemporaryFolder folder;
  write_text(folder / "a.txt", "a\n");
  write_text(folder / "empty.txt", "");
  write_text(folder / "nothing.txt", "");
  PrepareLmOptions options{
      .inputs = {folder / "empty.txt", folder / "a.txt", folder / "nothing.txt"},
      .output = folder / "out"};
  const PrepareSummary summary = prepare_lm(kBytes, options);
  EXPECT_EQ(summary.num_inputs, 1);
  EXPECT_THAT(summary.empty_inputs, ElementsAre(folder / "empty.txt", folder / "nothing.txt"));
  EXPECT_THAT(documents_of(Corpus({folder / "out"})), ElementsAre("a\n|"));
  options.inputs = {folder / "empty.txt", folder / "nothing.txt"};
  options.overwrite = true;
  EXPECT_THAT(message_of<DataError>([&] { prepare_lm(kBytes, options); }),
              AllOf(HasSubstr("empty.txt"), HasSubstr("gives no tokens"), HasSubstr("other 1")));
}

/// Encodes every text as the same ids.
class ConstantTokenizer : public ByteTokenizer {
 public:
  explicit ConstantTokenizer(std::vector<int32_t> ids) : ids_(std::move(ids)) {}
  std::vector<int32_t> encode(std::string_view) const override { return ids_; }

 private:
  std::vector<int32_t> ids_;
};

TEST(PrepareLm, RefusesIdsOutsideTheVocabulary) {
  EXPECT_THAT(refusal_of<DataError>(ConstantTokenizer({1, 257}), "a"),
              AllOf(HasSubstr("token id 257"), HasSubstr("larger.txt")));
}

TEST(PrepareLm, RefusesAnInputWhoseTextEncodesToNothing) {
  EXPECT_THAT(refusal_of<DataError>(ConstantTokenizer({}), "a"), HasSubstr("gives no tokens"));
}

TEST(PrepareLm, LeavesNothingWhenTheDiskIsFull) {
  const TemporaryFolder folder;
  write_text(folder / "in.txt", std::string(900'000, 'a'));
  write_text(folder / "small.txt", "a");
  rlimit before{};
  ::getrlimit(RLIMIT_FSIZE, &before);
  const rlimit limit{1'000'000, before.rlim_max};
  ::signal(SIGXFSZ, SIG_IGN);
  ::setrlimit(RLIMIT_FSIZE, &limit);
  const std::string message = message_of<WriteError>([&] {
    prepare_lm(kBytes,
               {.inputs = {folder / "small.txt", folder / "in.txt"}, .output = folder / "out"});
  });
  ::setrlimit(RLIMIT_FSIZE, &before);
  ::signal(SIGXFSZ, SIG_DFL);
  EXPECT_THAT(message, AllOf(HasSubstr("in-00000.h5"), HasSubstr("File too large")));
  EXPECT_THAT(contents_of(folder / "out"), IsEmpty());
}

TEST(PrepareLm, IsWholeOrRefusedByCorpusWhenKilled) {
  const TemporaryFolder folder;
  PrepareLmOptions options{.inputs = write_inputs(folder),
                           .output = folder / "out",
                           .document_mode = DocumentMode::kLine,
                           .tokens_per_shard = 100,
                           .overwrite = true};
  const auto prepare = [&] { prepare_lm(kBytes, options); };
  const int64_t prepare_us = test::duration_us(prepare);
  const int64_t num_tokens = Corpus({options.output}).num_tokens();
  std::mt19937 random(3);
  int num_refused = 0;
  for (int trial = 0; trial < 20; ++trial) {
    const pid_t child = ::fork();
    ASSERT_GE(child, 0);
    if (child == 0) {
      for (;;) prepare();
    }
    test::sleep_us(static_cast<int64_t>(random()) % (2 * prepare_us));
    ::kill(child, SIGKILL);
    ASSERT_EQ(::waitpid(child, nullptr, 0), child);
    try {
      EXPECT_EQ(Corpus({options.output}).num_tokens(), num_tokens);
    } catch (const DataError& error) {
      EXPECT_THAT(error.what(), HasSubstr(".unfinished"));
      ++num_refused;
    }
  }
  EXPECT_GT(num_refused, 0);
  prepare();
  EXPECT_EQ(Corpus({options.output}).num_tokens(), num_tokens);
}

TEST(PrepareLm, NamesTheOptionThatIsNotAllowed) {
  const TemporaryFolder folder;
  write_text(folder / "in.txt", "a\n");
  std::filesystem::create_directory(folder / "sub");
  write_text(folder / "sub" / "in.md", "b\n");
  const auto refusal = [&](PrepareLmOptions options) {
    options.output = folder / "out";
    return message_of<ConfigError>([&] { prepare_lm(kBytes, options); });
  };
  const std::filesystem::path input = folder / "in.txt";
  EXPECT_THAT(refusal({.inputs = {input}, .tokens_per_shard = -1}), HasSubstr("tokens_per_shard"));
  EXPECT_THAT(refusal({.inputs = {input}, .max_piece_bytes = 3}), HasSubstr("max_piece_bytes"));
  EXPECT_THAT(refusal({}), HasSubstr("no input"));
  EXPECT_THAT(refusal({.inputs = {folder / "sub"}}), HasSubstr("is not a file"));
  EXPECT_THAT(refusal({.inputs = {input, folder / "sub" / "in.md"}}),
              AllOf(HasSubstr("in.txt"), HasSubstr("in.md"), HasSubstr("in-00000.h5")));
  EXPECT_FALSE(std::filesystem::exists(folder / "out"));
}

/// Articles of the WikiText-2 evaluation files, 60 each (Merity et al. 2016, table 1).
TEST(PrepareLm, FindsTheArticlesOfWikitext) {
  const std::filesystem::path folder_of_text = test::shared_folder() / "data" / "wikitext-2";
  EXPECT_THAT(
      cut(" = A = \n \n a \n \n = B = \n", {.document_mode = DocumentMode::kWikitext}).size(), 2u);
  if (!std::filesystem::exists(folder_of_text / "valid.txt")) return;
  const TemporaryFolder folder;
  const PrepareSummary summary =
      prepare_lm(kBytes,
                 {.inputs = {folder_of_text / "valid.txt", folder_of_text / "test.txt"},
                  .output = folder / "out",
                  .document_mode = DocumentMode::kWikitext});
  EXPECT_EQ(summary.num_documents, 120);
}

}  // namespace
}  // namespace t2r::data
