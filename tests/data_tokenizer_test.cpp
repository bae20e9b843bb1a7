#include "data/tokenizers/tokenizer.h"

#include <gtest/gtest.h>

#include <chrono>
#include <filesystem>
#include <iostream>
#include <string>
#include <thread>
#include <vector>

#include "base/durable_file.h"
#include "base/error.h"
#include "base/hash.h"
#include "data/tokenizers/pre_tokenizer.h"
#include "data/tokenizers/sentencepiece_tokenizer.h"
#include "data/unicode/utf8.h"
#include "tests/data_shards.h"
#include "tests/data_tokenizers.h"
#include "tests/support.h"

namespace t2r::data {
namespace {

using test::expect_mentions;
using test::hostile_strings;
using test::Json;
using test::kGoldens;
using test::kRoot;
using test::message_of;
using test::open_changed;
using test::path_from_environment;
using test::read_json;
using test::shared_folder;
using test::TemporaryFolder;
using test::tiny_training;

namespace fs = std::filesystem;

std::string hash_ids(const std::vector<int32_t>& ids) {
  return hash_bytes(ids.data(), ids.size() * sizeof(int32_t));
}

void expect_golden_ids(const Tokenizer& tokenizer, const Json& expected_ids) {
  const auto& strings = hostile_strings();
  ASSERT_GE(strings.size(), 200u);
  ASSERT_EQ(expected_ids.size(), strings.size());
  for (size_t i = 0; i < strings.size(); ++i) {
    EXPECT_EQ(tokenizer.encode(strings[i]), expected_ids[i].get<std::vector<int32_t>>())
        << "hostile string " << i << ": " << strings[i];
  }
}

/// The texts of make_tokenizer_goldens.py's every_code_point_hash: the planes that have characters.
std::string hash_every_code_point(const Tokenizer& tokenizer) {
  Hasher hasher;
  for (char32_t start = 0; start < 0x110000; start += 0x1000) {
    if (start >= 0x40000 && start != 0xE0000 && start != 0x10F000) continue;
    std::string text;
    for (char32_t c = start; c < start + 0x1000; ++c) {
      if (c >= 0xD800 && c <= 0xDFFF) continue;
      for (const char* neighbour : {"a", "a1", "1!", "! "}) {
        text += neighbour;
        append_utf8(c, &text);
      }
      text += ' ';
    }
    const std::vector<int32_t> ids = tokenizer.encode(text);
    hasher.update(ids.data(), ids.size() * sizeof(int32_t));
  }
  return hasher.hex();
}

class TinyTokenizer : public testing::TestWithParam<const char*> {};

TEST_P(TinyTokenizer, GivesHuggingFaceIdsForHostileStrings) {
  const auto tokenizer = open_tokenizer(kGoldens / GetParam());
  expect_golden_ids(*tokenizer, read_json(kGoldens / GetParam() / "expected.json")["ids"]);
}

TEST_P(TinyTokenizer, GivesHuggingFaceIdsForEveryCodePoint) {
  const auto tokenizer = open_tokenizer(kGoldens / GetParam());
  EXPECT_EQ(hash_every_code_point(*tokenizer),
            read_json(kGoldens / GetParam() / "expected.json")["every_code_point"]);
}

INSTANTIATE_TEST_SUITE_P(Goldens,
                         TinyTokenizer,
                         testing::Values("tiny_byte_level", "tiny_digits", "tiny_split"));

TEST(Bpe, DecodesWhatItEncoded) {
  for (const char* name : {"tiny_byte_level", "tiny_split"}) {
    const auto tokenizer = open_tokenizer(kGoldens / name);
    int num_valid = 0;
    for (const std::string& text : hostile_strings()) {
      const bool valid = find_invalid_utf8(text) == text.size();
      num_valid += valid ? 1 : 0;
      EXPECT_EQ(tokenizer->decode(tokenizer->encode(text)), replace_invalid_utf8(text));
      if (valid) {
        EXPECT_EQ(replace_invalid_utf8(text), text);
      }
    }
    EXPECT_GE(num_valid, 200);
  }
}

TEST(Bpe, GivesTheBytesOfACutCharacter) {
  const auto tokenizer = open_tokenizer(kGoldens / "tiny_byte_level");
  std::vector<int32_t> ids = tokenizer->encode("\u4e2d");  // no merge covers it: one id per byte
  ASSERT_EQ(ids.size(), 3u);
  ids.pop_back();
  EXPECT_EQ(tokenizer->decode(ids), "\xE4\xB8");
}

TEST(Bpe, DecodesIdsWithoutATokenToNothing) {
  const auto tokenizer = open_tokenizer(kGoldens / "tiny_byte_level");
  const auto size = static_cast<int32_t>(tokenizer->vocab_size());
  std::vector<int32_t> ids = tokenizer->encode("ab");
  ids.insert(ids.begin() + 1, {size, size + 1000});  // a model may have more rows than tokens
  EXPECT_EQ(tokenizer->decode(ids), "ab");
  expect_mentions(message_of<DataError>([&] { tokenizer->decode({-1}); }), {"token id -1"});
}

TEST(Bpe, HasOneHashForEveryFormOfATokenizer) {
  const fs::path tiny = kGoldens / "tiny_byte_level";
  const TemporaryFolder folder;
  fs::copy_file(tiny / "vocab.json", folder.path() / "encoder.json");
  fs::copy_file(tiny / "merges.txt", folder.path() / "vocab.bpe");
  const auto from_json = open_tokenizer(tiny);
  const auto from_merges = open_tokenizer(tiny / "merges.txt");
  const auto from_openai = open_tokenizer(folder.path());
  EXPECT_EQ(from_json->files(), std::vector<fs::path>{tiny / "tokenizer.json"});
  EXPECT_EQ(from_merges->files(),
            (std::vector<fs::path>{tiny / "vocab.json", tiny / "merges.txt"}));
  EXPECT_EQ(from_openai->files().front().filename(), "encoder.json");
  EXPECT_EQ(from_json->hash(), from_merges->hash());
  EXPECT_EQ(from_json->hash(), from_openai->hash());
  expect_golden_ids(*from_openai, read_json(tiny / "expected.json")["ids"]);
  EXPECT_EQ(from_openai->end_of_document(), from_json->end_of_document());
}

TEST(Bpe, HashesWhatChangesIds) {
  const std::string original = open_tokenizer(kGoldens / "tiny_byte_level")->hash();
  const auto hash_of = [](const std::function<void(Json&)>& change) {
    return open_changed(change)->hash();
  };
  EXPECT_EQ(hash_of([](Json&) {}), original);
  EXPECT_EQ(hash_of([](Json& json) { json["added_tokens"][0]["normalized"] = true; }), original)
      << "with one added token its pass makes no difference";
  EXPECT_NE(hash_of([](Json& json) {
              std::swap(json["model"]["merges"][0], json["model"]["merges"][1]);
            }),
            original);
  EXPECT_NE(hash_of([](Json& json) { json["model"]["merges"].erase(5); }), original);
  EXPECT_NE(hash_of([](Json& json) { json["added_tokens"].clear(); }), original);
  EXPECT_NE(hash_of([](Json& json) { json["added_tokens"][0]["rstrip"] = true; }), original);
  EXPECT_NE(hash_of([](Json& json) { json["pre_tokenizer"]["use_regex"] = false; }), original);
  EXPECT_NE(hash_of([](Json& json) { json["model"]["ignore_merges"] = true; }), original);
  EXPECT_NE(hash_of([](Json& json) {
              std::swap(json["model"]["vocab"]["a"], json["model"]["vocab"]["b"]);
            }),
            original);
}

TEST(Bpe, FindsTheEndOfADocument) {
  const auto name_it = [](const char* content) {
    return [content](Json& json) {
      json["added_tokens"][0]["content"] = content;
      json["model"]["vocab"][content] = json["model"]["vocab"]["<|endoftext|>"];
      json["model"]["vocab"].erase("<|endoftext|>");
    };
  };
  EXPECT_EQ(open_changed(name_it("<|endoftext|>x"))->end_of_document(), std::nullopt);
  EXPECT_EQ(open_changed(name_it("</s>"))->end_of_document(), 0);
  EXPECT_EQ(open_changed(name_it("<eos>"))->end_of_document(), 0);
  EXPECT_EQ(open_changed([](Json&) {})->end_of_document(), 0);
}

TEST(Bpe, EncodesTheSameFromSeveralThreads) {
  const auto tokenizer = open_tokenizer(kGoldens / "tiny_digits");
  const Json expected = read_json(kGoldens / "tiny_digits/expected.json")["ids"];
  std::vector<std::thread> threads;
  for (int i = 0; i < 4; ++i) {
    threads.emplace_back([&] { expect_golden_ids(*tokenizer, expected); });
  }
  for (std::thread& thread : threads) thread.join();
}

TEST(Bpe, TakesRunsOfMillionsOfBytes) {
  const auto tokenizer = open_tokenizer(kGoldens / "tiny_byte_level");
  for (const char* unit : {" ", "a", "1", "\n", "\u4e2d", "!"}) {
    std::string text;
    while (text.size() < 2'000'000) text += unit;
    EXPECT_EQ(tokenizer->decode(tokenizer->encode(text)), text);
  }
}

TEST(Bpe, DropsBytesWithoutTokenAsHuggingFaceDoes) {
  const auto tokenizer = open_changed([](Json& json) {
    json["model"]["vocab"]["<unused>"] = json["model"]["vocab"]["\u0104"];  // stands for byte 4
    json["model"]["vocab"].erase("\u0104");
  });
  // The neighbours of a dropped byte merge with each other.
  EXPECT_EQ(tokenizer->encode(".\x04."), tokenizer->encode(".."));
  EXPECT_EQ(tokenizer->encode("..").size(), 1u);
}

// Source: tokenizers 0.23.3. The model makes only tokens of its own vocabulary, and bytes of
// upper-case names.
TEST(Bpe, MakesNoAddedTokenThatItsVocabularyLacks) {
  const Json word = {{"id", 973}, {"content", "zebra"}, {"single_word", true}};
  const auto whole = open_changed([&](Json& json) {
    json["model"]["ignore_merges"] = true;
    json["added_tokens"].push_back(word);
  });
  EXPECT_EQ(whole->encode("zebra"), (std::vector<int32_t>{973}));
  EXPECT_EQ(whole->encode("zebra1"), (std::vector<int32_t>{90, 69, 66, 82, 65, 17}));
  const auto open_llama = [](const std::function<void(Json&)>& change) {
    const TemporaryFolder folder;
    Json json = read_json(kGoldens / "tiny_llama/tokenizer.json");
    change(json);
    return open_tokenizer(folder.write("tokenizer.json", json.dump()));
  };
  const auto original = open_llama([](Json&) {});
  const auto letter = open_llama([](Json& json) {
    json["added_tokens"].push_back({{"id", 320}, {"content", "\u0139"}, {"single_word", true}});
  });
  EXPECT_EQ(letter->encode("\u0139"), (std::vector<int32_t>{320}));
  EXPECT_EQ(letter->encode("a\u0139"), (std::vector<int32_t>{296, 302, 199, 188}));
  const auto lower = open_llama([](Json& json) {
    Json& vocabulary = json["model"]["vocab"];
    vocabulary["<0xc3>"] = vocabulary["<0xC3>"];
    vocabulary.erase("<0xC3>");
  });
  EXPECT_EQ(lower->encode("\u00C9"), (std::vector<int32_t>{296}));
  EXPECT_NE(lower->hash(), original->hash());
}

TEST(Bpe, AllowsHolesBetweenIds) {
  int32_t hole = 0;
  const auto tokenizer = open_changed([&](Json& json) {
    hole = static_cast<int32_t>(json["model"]["vocab"].size());
    json["model"]["vocab"]["<far>"] = hole + 1;
  });
  EXPECT_EQ(tokenizer->vocab_size(), hole + 2);
  EXPECT_EQ(tokenizer->decode({hole + 1}), "<far>");
  EXPECT_EQ(tokenizer->decode({hole + 1, hole, hole + 1}), "<far><far>");
}

TEST(PreTokenizer, GivesPiecesThatTogetherAreTheText) {
  const PreTokenizer splitter({R"(x*)", std::string(kGpt2Pattern)});  // also empty matches
  for (const std::string& bytes : hostile_strings()) {
    const std::string text = replace_invalid_utf8(bytes);
    std::string joined;
    splitter.split(text, [&](std::string_view piece) {
      EXPECT_FALSE(piece.empty());
      joined += piece;
    });
    EXPECT_EQ(joined, text);
  }
}

TEST(Utf8, ReplacesMaximalSubpartsAsPythonDoes) {
  const std::string r = "\xEF\xBF\xBD";
  EXPECT_EQ(replace_invalid_utf8("a\xE2\x82z"), "a" + r + "z");
  EXPECT_EQ(replace_invalid_utf8("\xED\xA0\x80"), r + r + r);
  EXPECT_EQ(replace_invalid_utf8("\xF0\x9F\x98"), r);
  EXPECT_EQ(replace_invalid_utf8("\xF4\x90\x80\x80"), r + r + r + r);
  EXPECT_EQ(replace_invalid_utf8("\xC0\xAF"), r + r);
  EXPECT_EQ(replace_invalid_utf8("\xF4\x8F\xBF\xBF"), "\xF4\x8F\xBF\xBF");
  EXPECT_EQ(find_invalid_utf8("0123456789\xC3"), 10u);
}

/// GPT-2's and SmolLM2's own vocabularies are not ours to distribute: these check what is there.
void expect_real_ids(const Tokenizer& tokenizer, const Json& golden) {
  expect_golden_ids(tokenizer, golden["ids"]);
  const fs::path file = shared_folder() / "data/wikitext-2/test.txt";
  if (!fs::exists(file)) return;
  const std::string text = read_file(file);
  const auto start = std::chrono::steady_clock::now();
  const std::vector<int32_t> ids = tokenizer.encode(text);
  const std::chrono::duration<double> elapsed = std::chrono::steady_clock::now() - start;
  EXPECT_EQ(ids.size(), golden["wikitext2_test"]["count"].get<size_t>());
  EXPECT_EQ(hash_ids(ids), golden["wikitext2_test"]["hash"]);
  // 0.2 s on two old cores; an encoder that is quadratic or forgets words takes minutes.
  EXPECT_LT(elapsed.count(), 20.0);
  std::cout << "WikiText-2 test: " << ids.size() << " ids in " << elapsed.count() << " s\n";
}

TEST(Bpe, GivesHuggingFaceIdsWithGpt2Vocabulary) {
  const Json golden = read_json(kGoldens / "gpt2_ids.json");
  ASSERT_EQ(golden["byte_level"]["ids"].size(), hostile_strings().size());
  const fs::path folder = shared_folder() / "data/gpt2-tokenizer";
  if (!fs::exists(folder)) return;
  const auto tokenizer = open_tokenizer(folder);
  EXPECT_EQ(tokenizer->vocab_size(), 50257);
  EXPECT_EQ(tokenizer->end_of_document(), 50256);
  expect_real_ids(*tokenizer, golden["byte_level"]);
}

TEST(Bpe, GivesHuggingFaceIdsWithSmolLm2Vocabulary) {
  const Json golden = read_json(kGoldens / "smollm2_ids.json");
  ASSERT_EQ(golden["digits_byte_level"]["ids"].size(), hostile_strings().size());
  const fs::path file =
      path_from_environment("T2R_SMOLLM2", kRoot / "models/smollm2-135m/tokenizer.json");
  if (!fs::exists(file)) return;
  Json json = read_json(file);
  const Json byte_level = {{"type", "ByteLevel"}};
  const Json digits = {{"type", "Digits"}, {"individual_digits", true}};
  const TemporaryFolder folder;
  json["pre_tokenizer"] = byte_level;
  expect_real_ids(*open_tokenizer(folder.write("a.json", json.dump())), golden["byte_level"]);
  json["pre_tokenizer"] = {{"type", "Sequence"}, {"pretokenizers", {digits, byte_level}}};
  const auto tokenizer = open_tokenizer(folder.write("b.json", json.dump()));
  EXPECT_EQ(tokenizer->vocab_size(), 49152);
  EXPECT_EQ(tokenizer->end_of_document(), 0);
  expect_real_ids(*tokenizer, golden["digits_byte_level"]);
}

TEST(OpenTokenizer, PrefersTokenizerJsonAndThenPairsAndThenModels) {
  const TemporaryFolder folder;
  const auto opened = [&] {
    return open_tokenizer(folder.path())->files().front().filename().string();
  };
  expect_mentions(message_of<ConfigError>([&] { opened(); }), {"tokenizer.json", "spiece.model"});
  const SentencePieceTraining training = tiny_training(folder, SentencePieceType::kBpe);
  train_sentencepiece(training);
  EXPECT_EQ(opened(), "bpe.model");
  fs::copy_file(training.output_model, folder.path() / "target.spm");
  expect_mentions(message_of<ConfigError>([&] { opened(); }), {"bpe.model", "target.spm"});
  fs::copy_file(training.output_model, folder.path() / "spiece.model");
  EXPECT_EQ(opened(), "spiece.model");
  const fs::path tiny = kGoldens / "tiny_byte_level";
  fs::copy_file(tiny / "vocab.json", folder.path() / "vocab.json");
  EXPECT_EQ(opened(), "spiece.model") << "a vocabulary without merges is no tokenizer";
  fs::copy_file(tiny / "merges.txt", folder.path() / "merges.txt");
  EXPECT_EQ(opened(), "vocab.json");
  fs::copy_file(tiny / "tokenizer.json", folder.path() / "tokenizer.json");
  EXPECT_EQ(opened(), "tokenizer.json");
}

TEST(OpenTokenizer, RefusesPathsThatAreNoTokenizer) {
  const TemporaryFolder folder;
  expect_mentions(message_of<ConfigError>([&] { open_tokenizer(folder.path() / "absent"); }),
                  {"absent"});
  const fs::path file = folder.write("notes.txt", "x");
  expect_mentions(message_of<ConfigError>([&] { open_tokenizer(file); }), {"notes.txt", "allowed"});
}

}  // namespace
}  // namespace t2r::data
