#include "data/tokenizers/sentencepiece_tokenizer.h"

#include <gtest/gtest.h>

#include <filesystem>
#include <string>
#include <vector>

#include "base/durable_file.h"
#include "base/error.h"
#include "data/unicode/utf8.h"
#include "tests/data_shards.h"
#include "tests/data_tokenizers.h"
#include "tests/support.h"

namespace t2r::data {
namespace {

using test::expect_mentions;
using test::hostile_strings;
using test::message_of;
using test::TemporaryFolder;
using test::tiny_training;

namespace fs = std::filesystem;

TEST(SentencePiece, ReproducesItsInputAfterTraining) {
  const TemporaryFolder folder;
  for (const SentencePieceType type : {SentencePieceType::kUnigram, SentencePieceType::kBpe}) {
    const SentencePieceTraining training = tiny_training(folder, type);
    train_sentencepiece(training);
    const auto tokenizer = open_tokenizer(training.output_model);
    EXPECT_EQ(tokenizer->vocab_size(), 400);
    EXPECT_EQ(tokenizer->end_of_document(), 2);
    EXPECT_EQ(tokenizer->files(), std::vector<fs::path>{training.output_model});
    EXPECT_TRUE(tokenizer->encode("").empty());
    EXPECT_EQ(tokenizer->encode("it\n").back(), 3) << "a line's end is a piece of its own";
    int num_checked = 0;
    for (const std::string& bytes : hostile_strings()) {
      if (find_invalid_utf8(bytes) < bytes.size()) continue;
      if (bytes.find("\u2581") != std::string::npos) continue;  // the sign for a space
      EXPECT_EQ(tokenizer->decode(tokenizer->encode(bytes)), bytes);
      ++num_checked;
    }
    EXPECT_GE(num_checked, 200);
    const std::string line = "they write state 5.";
    EXPECT_LT(tokenizer->encode(line).size(), line.size() * 3 / 4) << "too few pieces learnt";
  }
}

TEST(SentencePiece, TrainsTheSameModelTwice) {
  const TemporaryFolder folder;
  SentencePieceTraining training = tiny_training(folder, SentencePieceType::kUnigram);
  training.threads = 2;
  train_sentencepiece(training);
  const std::string first = read_file(training.output_model);
  training.output_model = folder.path() / "other_name.model";
  train_sentencepiece(training);
  EXPECT_EQ(read_file(training.output_model), first);
  EXPECT_EQ(std::distance(fs::directory_iterator(folder.path()), {}), 3) << "temporary files left";
}

TEST(SentencePiece, HashesPieces) {
  const TemporaryFolder folder;
  SentencePieceTraining training = tiny_training(folder, SentencePieceType::kUnigram);
  train_sentencepiece(training);
  const std::string hash = open_tokenizer(training.output_model)->hash();
  EXPECT_EQ(open_tokenizer(training.output_model)->hash(), hash);
  training.vocab_size = 399;
  train_sentencepiece(training);
  EXPECT_NE(open_tokenizer(training.output_model)->hash(), hash);
}

TEST(SentencePiece, RefusesTrainingThatCannotWork) {
  const TemporaryFolder folder;
  const SentencePieceTraining good = tiny_training(folder, SentencePieceType::kUnigram);
  const auto refusal = [&](auto change) {
    SentencePieceTraining training = good;
    change(training);
    std::string message;
    try {
      train_sentencepiece(training);
      ADD_FAILURE() << "no exception";
    } catch (const Error& error) {
      message = error.what();
    }
    EXPECT_FALSE(fs::exists(training.output_model));
    return message;
  };
  expect_mentions(refusal([](auto& t) { t.vocab_size = 100000; }),
                  {"vocab_size 100000", "Vocabulary size too high", "<="});
  expect_mentions(refusal([](auto& t) { t.type = SentencePieceType::kBpe, t.vocab_size = 100000; }),
                  {"vocab_size 100000", "Vocabulary size too high", "<="});
  expect_mentions(refusal([](auto& t) { t.vocab_size = 261; }), {"vocab_size 261"});
  expect_mentions(refusal([](auto& t) { t.vocab_size = 10; }), {"vocab_size is 10", "260"});
  expect_mentions(refusal([](auto& t) { t.character_coverage = 1.5; }), {"1.5", "up to 1"});
  expect_mentions(refusal([](auto& t) { t.threads = 0; }), {"threads is 0"});
  expect_mentions(refusal([](auto& t) { t.inputs.clear(); }), {"inputs"});
  const fs::path empty = folder.write("empty.txt", "\n \n");
  expect_mentions(refusal([&](auto& t) { t.inputs = {empty}; }), {"no text", "empty.txt"});
  const fs::path invalid = folder.write("latin1.txt", "caf\xE9 au lait\n");
  expect_mentions(refusal([&](auto& t) { t.inputs = {invalid}; }), {"latin1.txt", "offset 3"});
  expect_mentions(refusal([&](auto& t) { t.inputs = {folder.path() / "absent.txt"}; }),
                  {"absent.txt"});
}

TEST(SentencePiece, RefusesDamagedModels) {
  const TemporaryFolder folder;
  const SentencePieceTraining training = tiny_training(folder, SentencePieceType::kBpe);
  train_sentencepiece(training);
  const std::string whole = read_file(training.output_model);
  const std::string contents[] = {"", "no model", whole.substr(0, whole.size() / 2)};
  for (const std::string& content : contents) {
    const fs::path file = folder.write("damaged.model", content);
    expect_mentions(message_of<DataError>([&] { open_tokenizer(file); }), {"damaged.model"});
  }
  const auto tokenizer = open_tokenizer(training.output_model);
  expect_mentions(message_of<DataError>([&] { tokenizer->decode({-1}); }), {"token id -1"});
  EXPECT_EQ(tokenizer->decode({400, 4000}), "");
}

}  // namespace
}  // namespace t2r::data
