#include "data/tokenizers/tokenizer.h"

#include <gtest/gtest.h>

#include <filesystem>
#include <functional>
#include <string>
#include <vector>

#include "base/durable_file.h"
#include "base/error.h"
#include "tests/data_shards.h"
#include "tests/data_tokenizers.h"
#include "tests/support.h"

namespace t2r::data {
namespace {

using test::expect_mentions;
using test::Json;
using test::kGoldens;
using test::message_of;
using test::open_changed;
using test::read_json;
using test::refusal_of;
using test::TemporaryFolder;

namespace fs = std::filesystem;

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

}  // namespace
}  // namespace t2r::data
