#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <filesystem>
#include <optional>
#include <string>
#include <vector>

#include "base/durable_file.h"
#include "base/error.h"
#include "data/corpus.h"
#include "data/prepare_lm.h"
#include "tests/data_shards.h"
#include "tests/support.h"

namespace t2r::data {
namespace {

using test::ByteTokenizer;
using test::message_of;
using test::TemporaryFolder;
using test::write_text;
using ::testing::AllOf;
using ::testing::Contains;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;

const ByteTokenizer kBytes;

std::string text_of(const Corpus& corpus) {
  std::vector<int64_t> ids(static_cast<size_t>(corpus.num_tokens()));
  corpus.read(0, corpus.num_tokens(), ids.data());
  std::string text;
  for (const int64_t id : ids) text += id == 256 ? '|' : static_cast<char>(id);
  return text;
}

std::vector<std::string> names_in(const std::filesystem::path& folder) {
  std::vector<std::string> names;
  for (const auto& entry : std::filesystem::directory_iterator(folder)) {
    names.push_back(entry.path().filename().string());
  }
  std::sort(names.begin(), names.end());
  return names;
}

/// Three ranks' shards of a.txt, b.txt and c.txt, "new" in place of "old" ones.
struct ThreeRanks {
  ThreeRanks() {
    for (const char* name : {"a.txt", "b.txt", "c.txt"}) {
      write_text(folder / name, concat("old ", name[0], "\n"));
      options.inputs.push_back(folder / name);
    }
    options.output = folder / "out";
    options.tokens_per_shard = 1;
    options.document_mode = DocumentMode::kLine;
    write_text(folder / "b.txt", "old b\nmore b\n");
    prepare_lm(kBytes, options);
    for (const char* name : {"a.txt", "b.txt", "c.txt"}) {
      write_text(folder / name, concat("new ", name[0], "\n"));
    }
    options.overwrite = true;
    plan = plan_lm(options);
    clear_lm_output(plan);
    for (int rank = 0; rank < 3; ++rank) ranks.emplace_back(stage_lm(kBytes, plan, rank, 3));
  }

  TemporaryFolder folder;
  PrepareLmOptions options;
  LmPlan plan;
  std::vector<std::optional<StagedLm>> ranks;
};

TEST(StagedLm, ReplacesAllShardsOfTheInputsOnceComplete) {
  ThreeRanks three;
  for (auto& rank : three.ranks) rank->publish();
  EXPECT_THAT(message_of<DataError>([&] { Corpus({three.options.output}); }),
              HasSubstr(".unfinished"));
  for (auto& rank : three.ranks) rank->complete();
  EXPECT_EQ(text_of(Corpus({three.options.output})), "new a\n|new b\n|new c\n|");
  EXPECT_THAT(names_in(three.options.output),
              ElementsAre("a-00000.h5", "b-00000.h5", "c-00000.h5"));
}

TEST(StagedLm, TakesEverythingBackUnlessComplete) {
  for (const size_t num_published : {0, 1, 2, 3}) {
    ThreeRanks three;
    for (size_t rank = 0; rank < num_published; ++rank) three.ranks[rank]->publish();
    three.ranks.clear();
    EXPECT_EQ(text_of(Corpus({three.options.output})), "old a\n|old b\n|more b\n|old c\n|")
        << num_published << " published";
  }
}

TEST(StagedLm, IsRefusedByCorpusFromTheFirstRankOnUntilTheLast) {
  ThreeRanks three;
  const auto refuses = [&] {
    EXPECT_THAT(message_of<DataError>([&] { Corpus({three.options.output}); }),
                HasSubstr(".unfinished"));
  };
  refuses();
  for (auto& rank : three.ranks) {
    rank->publish();
    refuses();
  }
  three.ranks[2]->complete();
  refuses();
  three.ranks[0]->complete();
  refuses();
  three.ranks[1]->complete();
  EXPECT_EQ(Corpus({three.options.output}).num_documents(), 3);
}

TEST(StagedLm, TakesItsShardsBackWhenPublishingFails) {
  ThreeRanks three;
  // Somebody has removed a shard that was to be replaced.
  std::filesystem::remove(three.options.output / "c-00000.h5");
  size_t num_failed = 0;
  for (auto& rank : three.ranks) {
    try {
      rank->publish();
    } catch (const WriteError& error) {
      EXPECT_THAT(error.what(), HasSubstr("c-00000.h5"));
      ++num_failed;
    }
  }
  three.ranks.clear();
  EXPECT_EQ(num_failed, 1u);
  EXPECT_EQ(text_of(Corpus({three.options.output})), "old a\n|old b\n|more b\n|");
}

TEST(PrepareLm, FilledShardsHoldTheSameSequence) {
  const TemporaryFolder folder;
  PrepareLmOptions options{.document_mode = DocumentMode::kLine};
  std::filesystem::create_directory(folder / "in");
  for (int i = 0; i < 50; ++i) {
    options.inputs.push_back(folder / "in" / concat("t", i, i % 3 == 0 ? "-x" : "", ".txt"));
    std::string text;
    for (int line = 0; line < i % 4; ++line) text += concat("line ", line, " of ", i, "\n");
    write_text(options.inputs.back(), text);
  }
  const auto documents = [&](const char* name) {
    const Corpus corpus({folder / name});
    std::vector<int64_t> offsets(static_cast<size_t>(corpus.num_documents()) + 1);
    corpus.read_document_offsets(0, corpus.num_documents() + 1, offsets.data());
    return std::tuple(text_of(corpus), offsets, corpus.num_words(), corpus.num_bytes());
  };
  options.output = folder / "separate";
  const PrepareSummary separate = prepare_lm(kBytes, options);
  EXPECT_EQ(separate.shards.size(), 37u);
  EXPECT_EQ(separate.empty_inputs.size(), 13u);
  options.output = folder / "filled";
  options.fill_shards = true;
  EXPECT_EQ(prepare_lm(kBytes, options).shards.size(), 1u);
  EXPECT_EQ(documents("separate"), documents("filled"));
  EXPECT_EQ(H5File::open(folder / "filled" / "filled-00000-00000.h5").read_text("source"),
            "t1.txt to t9-x.txt");
  options.tokens_per_shard = 50;
  options.output = folder / "cut";
  EXPECT_GT(prepare_lm(kBytes, options).shards.size(), 10u);
  EXPECT_EQ(documents("separate"), documents("cut"));
}

TEST(PrepareLm, CutsManyFilesIntoGroupsThatRanksShare) {
  const TemporaryFolder folder;
  PrepareLmOptions options{.fill_shards = true};
  for (int i = 0; i < 12; ++i) {
    options.inputs.push_back(folder / concat("t", i, ".txt"));
    write_text(options.inputs.back(), "");
    std::filesystem::resize_file(options.inputs.back(), 1'500'000);  // groups hold 4 MiB
  }
  const std::vector<InputGroup> groups = group_inputs(options);
  ASSERT_EQ(groups.size(), 4u);
  for (const InputGroup& group : groups) EXPECT_EQ(group.inputs.size(), 3u);
  EXPECT_EQ(groups[3].stem, "filled-00003");
}

/// Puts 'B' in front of a text, as its configuration says.
class BeginningTokenizer : public ByteTokenizer {
 public:
  std::optional<int32_t> begin_of_text() const override { return 'B'; }
};

TEST(PrepareLm, BeginsEachDocumentAsTheTokenizerDoes) {
  const TemporaryFolder folder;
  write_text(folder / "in.txt", "one\ntwo three four\n");
  PrepareLmOptions options{.inputs = {folder / "in.txt"},
                           .output = folder / "out",
                           .document_mode = DocumentMode::kLine,
                           .max_piece_bytes = 6};
  prepare_lm(BeginningTokenizer(), options);
  EXPECT_EQ(text_of(Corpus({options.output})), "Bone\n|Btwo three four\n|");
  EXPECT_EQ(Corpus({options.output}).begin_of_text(), 'B');
  options.add_begin_of_text = false;
  options.overwrite = true;
  prepare_lm(BeginningTokenizer(), options);
  EXPECT_EQ(text_of(Corpus({options.output})), "one\n|two three four\n|");
  EXPECT_EQ(Corpus({options.output}).begin_of_text(), std::nullopt);
}

}  // namespace
}  // namespace t2r::data
