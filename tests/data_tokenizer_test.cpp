#include "data/tokenizers/tokenizer.h"

#include <gtest/gtest.h>

#include <chrono>
#include <filesystem>
#include <functional>
#include <nlohmann/json.hpp>
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
#include "tests/support.h"

namespace t2r::data {
namespace {

using test::message_of;
using test::path_from_environment;
using test::shared_folder;
using test::TemporaryFolder;

namespace fs = std::filesystem;
using Json = nlohmann::json;

const fs::path kRoot = T2R_SOURCE_DIR;
const fs::path kGoldens = kRoot / "tests/goldens/tokenizers";

Json read_json(const fs::path& path) {
  return Json::parse(read_file(path));
}

std::string decode_base64(const std::string& text) {
  constexpr std::string_view kDigits =
      "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
  std::string bytes;
  uint32_t bits = 0;
  int num_bits = 0;
  for (const char digit : text) {
    if (digit == '=') break;
    bits = (bits << 6) | static_cast<uint32_t>(kDigits.find(digit));
    num_bits += 6;
    if (num_bits < 8) continue;
    num_bits -= 8;
    bytes.push_back(static_cast<char>((bits >> num_bits) & 0xFF));
  }
  return bytes;
}

const std::vector<std::string>& hostile_strings() {
  static const std::vector<std::string> strings = [] {
    std::vector<std::string> decoded;
    for (const Json& entry : read_json(kGoldens / "hostile_strings.json")) {
      decoded.push_back(decode_base64(entry.get<std::string>()));
    }
    return decoded;
  }();
  return strings;
}

std::string hash_ids(const std::vector<int32_t>& ids) {
  return hash_bytes(ids.data(), ids.size() * sizeof(int32_t));
}

void expect_mentions(const std::string& message, const std::vector<std::string>& parts) {
  for (const std::string& part : parts) {
    EXPECT_NE(message.find(part), std::string::npos) << "\"" << part << "\" not in: " << message;
  }
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

/// tiny_byte_level's tokenizer.json after `change`, opened.
std::unique_ptr<Tokenizer> open_changed(const std::function<void(Json&)>& change) {
  const TemporaryFolder folder;
  Json json = read_json(kGoldens / "tiny_byte_level/tokenizer.json");
  change(json);
  return open_tokenizer(folder.write("tokenizer.json", json.dump()));
}

std::string refusal_of(const std::function<void(Json&)>& change) {
  return message_of<DataError>([&] { open_changed(change); });
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

TEST(Bpe, RefusesDamagedTokenizerJson) {
  const TemporaryFolder folder;
  const std::string whole = read_file(kGoldens / "tiny_byte_level/tokenizer.json");
  const auto refusal = [&](const std::string& content) {
    const fs::path file = folder.write("tokenizer.json", content);
    return message_of<DataError>([&] { open_tokenizer(file); });
  };
  for (const size_t size : {size_t{0}, size_t{1}, whole.size() / 2, whole.size() - 3}) {
    expect_mentions(refusal(whole.substr(0, size)), {"tokenizer.json", "byte", "not valid JSON"});
  }
  expect_mentions(refusal("[1, 2]"), {"tokenizer.json"});
  expect_mentions(refusal("{}"), {"tokenizer.json", "model"});
  expect_mentions(refusal(R"({"model": {"vocab": {"a": 0, "b": 1, "a": 2}}})"),
                  {"tokenizer.json", "\"a\"", "twice"});
}

TEST(Bpe, RefusesVocabulariesThatContradictThemselves) {
  expect_mentions(refusal_of([](Json& json) { json["model"]["vocab"]["zebra"] = 7; }),
                  {"\"zebra\"", "same id 7"});
  expect_mentions(refusal_of([](Json& json) { json["model"]["vocab"]["zebra"] = -1; }),
                  {"\"zebra\"", "-1", "allowed: 0 to"});
  expect_mentions(refusal_of([](Json& json) { json["model"]["vocab"]["zebra"] = 1LL << 40; }),
                  {"\"zebra\"", "1099511627776"});
  expect_mentions(refusal_of([](Json& json) { json["model"]["vocab"]["zebra"] = "x"; }),
                  {"\"zebra\"", "no integer"});
  expect_mentions(refusal_of([](Json& json) { json["model"]["vocab"][""] = 1000; }), {"empty"});
  expect_mentions(refusal_of([](Json& json) { json["model"]["merges"][3] = "q zebra"; }),
                  {"merge 3", "q zebra", "needs token \"zebra\"", "lacks"});
  expect_mentions(refusal_of([](Json& json) { json["model"]["merges"][3] = "a b c"; }),
                  {"merge 3", "a b c", "one space"});
  expect_mentions(refusal_of([](Json& json) { json["added_tokens"][0]["id"] = 5; }),
                  {"<|endoftext|>", "has id 5", "0 in the vocabulary"});
  expect_mentions(refusal_of([](Json& json) {
                    json["added_tokens"].push_back({{"content", "<far>"}, {"id", 100000}});
                  }),
                  {"<far>", "has id 100000", "first free id"});
  expect_mentions(
      refusal_of([](Json& json) { json["added_tokens"].push_back(json["added_tokens"][0]); }),
      {"<|endoftext|>", "twice"});
}

TEST(Bpe, RefusesByNameWhatItDoesNotDo) {
  const auto set_pre_tokenizer = [](const Json& value) {
    return refusal_of([&](Json& json) { json["pre_tokenizer"] = value; });
  };
  expect_mentions(refusal_of([](Json& json) {
                    json["normalizer"] = {{"type", "Lowercase"}};
                  }),
                  {"normalizer", "Lowercase", "allowed: NFC"});
  expect_mentions(refusal_of([](Json& json) { json["model"]["type"] = "Unigram"; }),
                  {"model.type", "Unigram", "BPE"});
  expect_mentions(refusal_of([](Json& json) { json["model"]["dropout"] = 0.1; }), {"dropout 0.1"});
  expect_mentions(refusal_of([](Json& json) { json["model"]["byte_fallback"] = true; }),
                  {"byte_fallback"});
  expect_mentions(set_pre_tokenizer({{"type", "Metaspace"}}), {"Metaspace", "U+2581"});
  expect_mentions(set_pre_tokenizer(nullptr), {"pre_tokenizer null"});
  expect_mentions(set_pre_tokenizer({{"type", "Digits"}}), {"without ByteLevel"});
  expect_mentions(set_pre_tokenizer({{"type", "ByteLevel"}, {"add_prefix_space", true}}),
                  {"add_prefix_space"});
  const Json byte_level = {{"type", "ByteLevel"}};
  const Json split = {{"type", "Split"}, {"pattern", {{"Regex", "(x"}}}, {"behavior", "Isolated"}};
  Json removed = split;
  removed["behavior"] = "Removed";
  const auto sequence = [](const Json& stages) {
    return Json{{"type", "Sequence"}, {"pretokenizers", stages}};
  };
  expect_mentions(set_pre_tokenizer(sequence({byte_level, {{"type", "Digits"}}})),
                  {"after ByteLevel"});
  expect_mentions(set_pre_tokenizer(sequence({removed, byte_level})), {"Removed", "Isolated"});
  expect_mentions(set_pre_tokenizer(sequence({split, byte_level})), {"(x", "without )"});
}

TEST(Bpe, RefusesDecodersInAnOrderThatMeansSomethingElse) {
  const auto open = [](const Json& decoders, const Json& metaspace = nullptr) {
    const TemporaryFolder folder;
    Json json = read_json(kGoldens / "tiny_llama/tokenizer.json");
    json["decoder"] = {{"type", "Sequence"}, {"decoders", decoders}};
    if (!metaspace.is_null()) json["pre_tokenizer"].update(metaspace);
    return open_tokenizer(folder.write("tokenizer.json", json.dump()));
  };
  const auto refusal = [&](const Json& decoders, const Json& metaspace = nullptr) {
    return message_of<DataError>([&] { open(decoders, metaspace); });
  };
  const Json replace = {{"type", "Replace"}, {"pattern", {{"String", "\u2581"}}}, {"content", " "}};
  const Json strip = {{"type", "Strip"}, {"content", " "}, {"start", 1}, {"stop", 0}};
  const Json metaspace = {{"type", "Metaspace"}, {"replacement", "\u2581"}};
  const Json fuse = {{"type", "Fuse"}}, bytes = {{"type", "ByteFallback"}};
  EXPECT_NE(open({replace, bytes, fuse, strip}), nullptr);
  EXPECT_NE(open({fuse, replace}), nullptr);
  expect_mentions(refusal({fuse, bytes}), {"ByteFallback", "behind Fuse", "in this order"});
  expect_mentions(refusal({fuse, metaspace}), {"Metaspace", "behind Fuse"});
  expect_mentions(refusal({fuse, strip, replace}), {"Replace", "behind Strip"});
  expect_mentions(refusal({replace, fuse, strip, strip}), {"Strip", "behind Strip"});
  const Json decoders = {replace, bytes, fuse};
  EXPECT_NE(open(decoders, {{"add_prefix_space", true}, {"prepend_scheme", "never"}}), nullptr);
  expect_mentions(refusal(decoders, {{"add_prefix_space", false}}),
                  {"add_prefix_space false", "\"first\"", "one of the two"});
}

TEST(Bpe, RefusesAnAddedTokenOfWhichTheNormalizerLeavesNothing) {
  const auto change = [](bool normalized) {
    return [=](Json& json) {
      json["normalizer"] = {{"type", "Replace"}, {"pattern", {{"String", " "}}}, {"content", ""}};
      json["added_tokens"].push_back({{"id", 973}, {"content", "  "}, {"normalized", normalized}});
    };
  };
  expect_mentions(refusal_of(change(true)),
                  {"tokenizer.json", "\"  \"", "973", "normalized false"});
  EXPECT_EQ(open_changed(change(false))->encode("a  b").at(1), 973);
}

TEST(Bpe, RefusesBadMergeLines) {
  const TemporaryFolder folder;
  folder.write("vocab.json", R"({"a": 0, "b": 1, "ab": 2})");
  const auto refusal = [&](const std::string& merges) {
    folder.write("merges.txt", merges);
    return message_of<DataError>([&] { open_tokenizer(folder.path()); });
  };
  expect_mentions(refusal("#version: 0.2\na b\nb a\n"), {"merges.txt", "line 3", "\"ba\""});
  expect_mentions(refusal("a b\nab\n"), {"merges.txt", "line 2", "one space"});
  folder.write("merges.txt", "#version: 0.2\r\na b\r\n");
  EXPECT_EQ(open_tokenizer(folder.path())->encode("aab"), (std::vector<int32_t>{0, 2}));
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

/// Lines with enough variety for a few hundred pieces.
std::string training_text() {
  std::string text;
  for (int i = 0; i < 400; ++i) {
    text += concat("sentence ",
                   i * 37,
                   " is about ",
                   i % 7 == 0 ? "caf\u00e9s" : "networks",
                   ", layers and their widths; ",
                   i % 3 == 0 ? "it reads" : "they write",
                   " state ",
                   i % 11,
                   ".\n");
  }
  return text;
}

SentencePieceTraining tiny_training(const TemporaryFolder& folder, SentencePieceType type) {
  return {.inputs = {folder.write("text.txt", training_text())},
          .output_model =
              folder.path() / (type == SentencePieceType::kBpe ? "bpe.model" : "unigram.model"),
          .vocab_size = 400,
          .type = type,
          .character_coverage = 1.0};
}

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
