#include "data/tokenizers/stream_decoder.h"

#include <gtest/gtest.h>

#include <random>
#include <string>
#include <vector>

#include "data/tokenizers/sentencepiece_tokenizer.h"
#include "data/unicode/utf8.h"
#include "tests/data_shards.h"
#include "tests/support.h"

namespace t2r::data {
namespace {

using test::TemporaryFolder;

/// Every add() of `ids` in turn, and finish() last.
std::vector<std::string> stream(const Tokenizer& tokenizer, const std::vector<int32_t>& ids) {
  StreamDecoder decoder(tokenizer);
  std::vector<std::string> parts;
  for (const int32_t id : ids) parts.push_back(decoder.add(id));
  parts.push_back(decoder.finish());
  return parts;
}

std::string join(const std::vector<std::string>& parts) {
  std::string all;
  for (const std::string& part : parts) all += part;
  return all;
}

/// Pieces given by the test; ids above them have no token.
class PieceTokenizer final : public test::ByteTokenizer {
 public:
  PieceTokenizer(std::vector<TokenPiece> pieces, TextRules rules)
      : pieces_(std::move(pieces)), rules_(rules) {}
  TokenPiece piece(int32_t id) const override {
    return id < std::ssize(pieces_) ? pieces_[static_cast<size_t>(id)] : TokenPiece{};
  }
  TextRules text_rules() const override { return rules_; }

 private:
  std::vector<TokenPiece> pieces_;
  TextRules rules_;
};

TEST(StreamDecoder, GivesCharactersThatSpanTokensWhole) {
  const test::ByteTokenizer bytes;
  EXPECT_EQ(stream(bytes, bytes.encode("a\u6f22x")),
            (std::vector<std::string>{"a", "", "", "\u6f22", "x", ""}));
  EXPECT_EQ(stream(bytes, bytes.encode("\U0001F600")),
            (std::vector<std::string>{"", "", "", "\U0001F600", ""}));
}

TEST(StreamDecoder, ReplacesWhatIsNoCharacter) {
  const test::ByteTokenizer bytes;
  const std::string r = "\uFFFD";
  EXPECT_EQ(stream(bytes, {0xE6, 0xBC, 'x'}), (std::vector<std::string>{"", "", r + "x", ""}));
  EXPECT_EQ(stream(bytes, {0xF0, 0x9F}), (std::vector<std::string>{"", "", r}));
  EXPECT_EQ(stream(bytes, {0x80, 0xFF}), (std::vector<std::string>{r, r, ""}));
  std::mt19937 random(1);
  for (int round = 0; round < 2000; ++round) {
    std::string text;
    std::vector<int32_t> ids;
    for (int i = 0; i < 12; ++i) {
      constexpr int kBytes[] = {'a', ' ', 0x80, 0xBF, 0xC3, 0xE6, 0xBC, 0xF0, 0x9F, 0xED, 0xFF};
      ids.push_back(kBytes[random() % std::size(kBytes)]);
      text.push_back(static_cast<char>(ids.back()));
    }
    EXPECT_EQ(join(stream(bytes, ids)), replace_invalid_utf8(text));
  }
}

TEST(StreamDecoder, JudgesRunsOfBytePiecesAsTheTokenizerDoes) {
  using Kind = TokenPiece::Kind;
  const std::vector<TokenPiece> pieces = {
      {Kind::kByte, "\xC3"}, {Kind::kByte, "\xA9"}, {Kind::kText, " the"}, {Kind::kNone, ""}};
  const PieceTokenizer whole(pieces, {.strips_first_space = true, .judges_byte_runs_whole = true});
  const std::string r = "\uFFFD";
  EXPECT_EQ(stream(whole, {2, 2, 0, 1, 2}),
            (std::vector<std::string>{"the", " the", "", "", "\u00e9 the", ""}));
  EXPECT_EQ(join(stream(whole, {0, 1, 0})), r + r + r) << "as Hugging Face's ByteFallback";
  EXPECT_EQ(join(stream(whole, {0, 3, 99, 1})), "\u00e9") << "ids without token do not end a run";
  const PieceTokenizer single(pieces, {});
  EXPECT_EQ(join(stream(single, {0, 0, 2})), r + r + " the");
  EXPECT_EQ(stream(single, {2, 0, 1, 0}), (std::vector<std::string>{" the", "", "\u00e9", "", r}));
}

TEST(StreamDecoder, GivesWhatSentencePieceGivesForAllIdsAtOnce) {
  const TemporaryFolder folder;
  std::string text;
  for (int i = 0; i < 300; ++i)
    text += "the quick brown fox number " + std::to_string(i) + " caf\u00e9\n";
  for (const SentencePieceType type : {SentencePieceType::kUnigram, SentencePieceType::kBpe}) {
    SentencePieceTraining training;
    training.inputs = {folder.write("text.txt", text)};
    training.output_model = folder / "m.model";
    training.vocab_size = 330;
    training.type = type;
    train_sentencepiece(training);
    const SentencePieceTokenizer tokenizer(training.output_model);
    std::mt19937 random(7);
    for (int round = 0; round < 300; ++round) {
      std::vector<int32_t> ids =
          tokenizer.encode(round % 2 == 0 ? " \u6f22 fox \U0001F600" : "the cat");
      for (int i = 0; i < 8; ++i) {
        const auto place = static_cast<ptrdiff_t>(random() % (ids.size() + 1));
        ids.insert(ids.begin() + place, static_cast<int32_t>(random() % 330));
      }
      EXPECT_EQ(join(stream(tokenizer, ids)), tokenizer.decode(ids));
    }
  }
}

}  // namespace
}  // namespace t2r::data
