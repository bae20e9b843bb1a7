#include <gtest/gtest.h>

#include <ctime>
#include <filesystem>
#include <functional>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "base/durable_file.h"
#include "base/error.h"
#include "data/tokenizers/sentencepiece_tokenizer.h"
#include "data/tokenizers/tokenizer.h"
#include "data/unicode/normalizer.h"
#include "data/unicode/utf8.h"
#include "tests/data_shards.h"
#include "tests/support.h"

namespace t2r::data {
namespace {

using test::message_of;
using test::TemporaryFolder;

namespace fs = std::filesystem;
using Json = nlohmann::json;

const fs::path kGoldens = fs::path(T2R_SOURCE_DIR) / "tests/goldens/tokenizers";
const fs::path kLlama = kGoldens / "tiny_llama";

Json read_json(const fs::path& path) {
  return Json::parse(read_file(path));
}

void expect_mentions(const std::string& message, const std::vector<std::string>& parts) {
  for (const std::string& part : parts) {
    EXPECT_NE(message.find(part), std::string::npos) << "\"" << part << "\" not in: " << message;
  }
}

/// tiny_byte_level's tokenizer.json after `change`, with `files` beside it.
std::unique_ptr<Tokenizer> open_byte_level(const TemporaryFolder& folder,
                                           const Json& files,
                                           const std::function<void(Json&)>& change = {}) {
  Json json = read_json(kGoldens / "tiny_byte_level/tokenizer.json");
  if (change) change(json);
  folder.write("tokenizer.json", json.dump());
  for (const auto& [name, content] : files.items()) folder.write(name, content.dump());
  return open_tokenizer(folder.path());
}

/// tiny_llama's model with `files` beside it.
std::unique_ptr<Tokenizer> open_llama(const TemporaryFolder& folder, const Json& files) {
  fs::copy_file(
      kLlama / "tokenizer.model", folder / "tokenizer.model", fs::copy_options::overwrite_existing);
  for (const auto& [name, content] : files.items()) folder.write(name, content.dump());
  return open_tokenizer(folder.path());
}

std::optional<int32_t> id_of(const Json& json) {
  return json.is_null() ? std::nullopt : std::optional(json.get<int32_t>());
}

TEST(SpecialTokens, AreWhatTransformersTakesFromTheFilesOfALlamaTokenizer) {
  const Json expected = read_json(kLlama / "expected.json");
  ASSERT_EQ(expected["cases"].size(), 13u);
  for (const Json& known : expected["cases"]) {
    SCOPED_TRACE(known["name"].get<std::string>());
    const TemporaryFolder folder;
    if (known["model"]) fs::copy_file(kLlama / "tokenizer.model", folder / "tokenizer.model");
    if (known["json"]) {
      Json json = read_json(kLlama / "tokenizer.json");
      if (!known["normalizer"].is_null()) {
        json["normalizer"] = known["normalizer"];
        json["pre_tokenizer"] = nullptr;
      }
      folder.write("tokenizer.json", json.dump());
    }
    for (const auto& [name, content] : known["files"].items()) folder.write(name, content.dump());
    const auto tokenizer = open_tokenizer(folder.path());
    EXPECT_EQ(tokenizer->vocab_size(), known["size"]);
    for (size_t i = 0; i < expected["texts"].size(); ++i) {
      const auto text = expected["texts"][i].get<std::string>();
      EXPECT_EQ(tokenizer->encode(text), known["ids"][i].get<std::vector<int32_t>>()) << text;
    }
    for (size_t i = 0; i < known["decoded"].size(); ++i) {
      EXPECT_EQ(tokenizer->decode(known["decoded"][i].get<std::vector<int32_t>>()),
                known["decoded_text"][i]);
    }
    EXPECT_EQ(tokenizer->begin_of_text(),
              known["begin"].empty() ? std::nullopt : id_of(known["begin"][0]));
    // Without a name transformers knows no end; the model's or tokenizer's own </s> is one.
    EXPECT_EQ(tokenizer->end_of_document(), id_of(known["end"]).value_or(2));
  }
}

TEST(SpecialTokens, HaveOneHashForBothFilesOfALlamaTokenizer) {
  const Json config = {{"tokenizer_config.json", {{"tokenizer_class", "LlamaTokenizer"}}}};
  const TemporaryFolder model, both;
  const std::string hash = open_llama(model, config)->hash();
  fs::copy_file(kLlama / "tokenizer.json", both / "tokenizer.json");
  EXPECT_EQ(open_llama(both, config)->hash(), hash);
  const TemporaryFolder legacy;
  EXPECT_NE(open_llama(legacy,
                       {{"tokenizer_config.json",
                         {{"tokenizer_class", "LlamaTokenizer"}, {"legacy", true}}}})
                ->hash(),
            hash);
}

TEST(SpecialTokens, OfAModelWithoutConfigurationAreText) {
  const TemporaryFolder alone;
  const auto tokenizer = open_llama(alone, Json::object());
  EXPECT_EQ(tokenizer->hash(), "43aaaa2d576aae977078e115465be2e7") << "shards of users carry it";
  EXPECT_GT(tokenizer->encode("<unk>").size(), 2u);
  EXPECT_EQ(tokenizer->begin_of_text(), std::nullopt);
  EXPECT_EQ(tokenizer->end_of_document(), 2);
  EXPECT_EQ(tokenizer->files().size(), 1u);
}

TEST(SpecialTokens, AreThoseThatTransformersSkips) {
  const auto special_ids = [](const Tokenizer& tokenizer) {
    std::vector<int32_t> ids;
    for (int32_t id = 0; id < tokenizer.vocab_size() + 2; ++id) {
      if (tokenizer.is_special(id)) ids.push_back(id);
    }
    return ids;
  };
  const TemporaryFolder plain, named, llama, alone;
  const auto added = [](Json& json) {
    const auto next = static_cast<int32_t>(json["model"]["vocab"].size());
    json["added_tokens"] = Json::array();
    for (const bool special : {true, false}) {
      const std::string content = special ? "<|sign|>" : "<|word|>";
      json["added_tokens"].push_back({{"id", next + (special ? 0 : 1)},
                                      {"content", content},
                                      {"special", special},
                                      {"normalized", false},
                                      {"lstrip", false},
                                      {"rstrip", false},
                                      {"single_word", false}});
    }
  };
  const auto byte_level = open_byte_level(plain, Json::object(), added);
  const int32_t sign = byte_level->encode("<|sign|>").front();
  EXPECT_EQ(special_ids(*byte_level), std::vector{sign});
  // A name makes a special token of any that is there.
  const Json config = {{"tokenizer_config.json", {{"pad_token", "<|word|>"}}}};
  EXPECT_EQ(special_ids(*open_byte_level(named, config, added)), (std::vector{sign, sign + 1}));
  EXPECT_EQ(special_ids(*open_llama(
                llama, {{"tokenizer_config.json", {{"tokenizer_class", "LlamaTokenizer"}}}})),
            (std::vector{0, 1, 2}));  // <unk>, <s>, </s>
  EXPECT_EQ(special_ids(*open_llama(alone, Json::object())), (std::vector{1, 2}));
}

TEST(SpecialTokens, NameTheEndOfADocument) {
  const Json listed = {
      {"0", {{"content", "<|endoftext|>"}, {"special", true}, {"normalized", false}}}};
  const auto end_with = [](const Json& files) {
    const TemporaryFolder folder;
    return open_byte_level(folder, files)->end_of_document();
  };
  const int32_t a = open_tokenizer(kGoldens / "tiny_byte_level")->encode("a").at(0);
  EXPECT_EQ(end_with(Json::object()), 0);
  EXPECT_EQ(end_with({{"tokenizer_config.json", {{"eos_token", "a"}}}}), a);
  EXPECT_EQ(end_with({{"tokenizer_config.json", {{"eos_token", {{"content", "a"}}}}}}), a);
  EXPECT_EQ(end_with({{"special_tokens_map.json", {{"eos_token", {{"content", "a"}}}}}}), a);
  EXPECT_EQ(end_with({{"tokenizer_config.json", {{"eos_token", nullptr}}}}), 0);
  EXPECT_EQ(end_with({{"tokenizer_config.json", {{"eos_token", "<|not there|>"}}}}), 0);
  EXPECT_EQ(
      end_with({{"tokenizer_config.json", {{"eos_token", "b"}, {"added_tokens_decoder", listed}}},
                {"special_tokens_map.json", {{"eos_token", "a"}}}}),
      a + 1)
      << "the map is not read beside added_tokens_decoder";
}

TEST(SpecialTokens, BeginATextAsThePostProcessorSays) {
  const auto begin_with = [](const Json& post_processor) {
    const TemporaryFolder folder;
    return open_byte_level(
               folder, Json::object(), [&](Json& json) { json["post_processor"] = post_processor; })
        ->begin_of_text();
  };
  const Json special = {{"SpecialToken", {{"id", "<|endoftext|>"}, {"type_id", 0}}}};
  const Json text = {{"Sequence", {{"id", "A"}, {"type_id", 0}}}};
  const auto with_single = [&](const Json& single) {
    return Json{{"type", "TemplateProcessing"},
                {"single", single},
                {"pair", Json::array()},
                {"special_tokens",
                 {{"<|endoftext|>", {{"id", "<|endoftext|>"}, {"ids", {0}}, {"tokens", {"x"}}}}}}};
  };
  EXPECT_EQ(begin_with(nullptr), std::nullopt);
  EXPECT_EQ(begin_with(with_single({special, text})), 0);
  EXPECT_EQ(begin_with(with_single({text, special})), std::nullopt);
  EXPECT_EQ(begin_with(with_single({special, special, text})), std::nullopt);
  EXPECT_EQ(begin_with({{"type", "Sequence"},
                        {"processors", {{{"type", "ByteLevel"}}, with_single({special, text})}}}),
            0);
}

TEST(SpecialTokens, KeepTheirFlagsAndTakeThoseOfTheConfiguration) {
  const auto ids_with = [](const Json& flags, const std::string& text) {
    const TemporaryFolder folder;
    Json token = {{"content", "<|endoftext|>"}, {"normalized", false}, {"special", true}};
    token.update(flags);
    return open_byte_level(folder,
                           {{"tokenizer_config.json", {{"added_tokens_decoder", {{"0", token}}}}}})
        ->encode(text);
  };
  const auto plain = open_tokenizer(kGoldens / "tiny_byte_level");
  const std::string text = "a  <|endoftext|> \n b x<|endoftext|>y";
  EXPECT_EQ(ids_with(Json::object(), text), plain->encode(text));
  EXPECT_EQ(ids_with({{"lstrip", true}, {"rstrip", true}}, "a  <|endoftext|> \n b"),
            plain->encode("a<|endoftext|>b"));
  EXPECT_EQ(ids_with({{"single_word", true}}, "x<|endoftext|>").size(),
            plain->encode("x<|endoftext|").size() + 1)
      << "not in the middle of a word";
  EXPECT_EQ(ids_with({{"single_word", true}}, "x <|endoftext|>."),
            plain->encode("x <|endoftext|>."));
}

TEST(SpecialTokens, RefuseConfigurationsThatContradictTheTokenizer) {
  const auto refusal = [](const Json& files) {
    const TemporaryFolder folder;
    return message_of<DataError>([&] { open_byte_level(folder, files); });
  };
  const auto listing = [](const std::string& id, const std::string& content) {
    return Json{
        {"tokenizer_config.json", {{"added_tokens_decoder", {{id, {{"content", content}}}}}}}};
  };
  expect_mentions(refusal(listing("7", "<|endoftext|>")),
                  {"<|endoftext|>", "has id 7", "it has 0"});
  expect_mentions(refusal(listing("100000", "<x>")), {"<x>", "100000", "next free id"});
  expect_mentions(refusal(listing("99999999999999", "<x>")), {"<x>", "99999999999999"});
  expect_mentions(refusal(listing("-1", "<x>")), {"<x>", "-1"});
  expect_mentions(refusal(listing("zero", "<x>")), {"\"zero\"", "token ids"});
  expect_mentions(refusal({{"added_tokens.json", {{"<x>", 1e300}}}}), {"<x>", "added_tokens.json"});
  expect_mentions(refusal({{"tokenizer_config.json", {{"eos_token", 7}}}}), {"eos_token", "7"});
  expect_mentions(refusal({{"special_tokens_map.json", {1, 2}}}),
                  {"special_tokens_map.json", "object"});
  const TemporaryFolder folder;
  folder.write("tokenizer_config.json", std::string(200'000, '['));
  expect_mentions(message_of<DataError>([&] { open_byte_level(folder, Json::object()); }),
                  {"tokenizer_config.json", "64 deep"});
}

TEST(SpecialTokens, OfAnUnsupportedTokenizerJsonComeWithTheModelBesideIt) {
  const TemporaryFolder folder;
  const Json unigram = {{"model", {{"type", "Unigram"}, {"vocab", Json::array()}}},
                        {"added_tokens", {{{"id", 0}, {"content", "<unk>"}, {"special", true}}}}};
  folder.write("tokenizer.json", unigram.dump());
  expect_mentions(message_of<DataError>([&] { open_tokenizer(folder.path()); }),
                  {"Unigram", "*.model"});
  fs::copy_file(kLlama / "tokenizer.model", folder / "spiece.model");
  const auto tokenizer = open_tokenizer(folder.path());
  EXPECT_EQ(tokenizer->files().front().filename(), "spiece.model");
  EXPECT_EQ(tokenizer->encode("<unk>"), std::vector<int32_t>{0});
}

// Source: tokenizers 0.23.3, Tokenizer.decode of these tokens. What is written in the byte alphabet
// alone is read as bytes, which one letter beyond ASCII rarely is.
TEST(SpecialTokens, GoThroughTheByteLevelDecoderLikeAnyToken) {
  const std::vector<std::pair<std::string, std::string>> texts = {
      {"\u0120\u0120x", "  x"},
      {"\u00C3\u00A8", "\u00E8"},
      {"\u00E9\u00E9", "\uFFFD\uFFFD"},
      {"a \u00E9", "a \u00E9"},
      {"\u65E5\u672C", "\u65E5\u672C"},
      {"<x>", "<x>"},
  };
  const TemporaryFolder folder;
  const auto tokenizer = open_byte_level(folder, Json::object(), [&](Json& json) {
    for (const auto& [content, text] : texts) {
      const size_t next = json["model"]["vocab"].size() + json["added_tokens"].size() - 1;
      json["added_tokens"].push_back({{"id", next}, {"content", content}});
    }
  });
  for (const auto& [content, text] : texts) {
    const std::vector<int32_t> ids = tokenizer->encode(content);
    ASSERT_EQ(ids.size(), 1u) << content;
    EXPECT_EQ(replace_invalid_utf8(tokenizer->decode(ids)), text) << content;
  }
}

TEST(OpenTokenizer, FindsSentencePieceModelsOfAnyName) {
  for (const char* name :
       {"source.spm", "m.model", "sentencepiece.bpe.model", "vocabulary", "model.bin"}) {
    const TemporaryFolder folder;
    folder.write("README.md", "# not a tokenizer");
    EXPECT_TRUE(sentencepiece_files(folder.path()).empty());
    fs::copy_file(kLlama / "tokenizer.model", folder / name);
    EXPECT_EQ(open_tokenizer(folder.path())->vocab_size(), 320) << name;
    EXPECT_EQ(open_tokenizer(folder / name)->vocab_size(), 320) << name;
    EXPECT_EQ(sentencepiece_files(folder.path()), std::vector<fs::path>{folder / name});
  }
}

TEST(OpenTokenizer, SaysWhatADownloadLeftInstead) {
  const TemporaryFolder folder;
  for (const char* name : {"tokenizer.json", "tokenizer.model", "vocab.json"}) {
    const fs::path file = folder.write(
        name, "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 499723\n");
    expect_mentions(message_of<DataError>([&] { open_tokenizer(file); }),
                    {name, "Git LFS pointer"});
    folder.write(name, "\n <!DOCTYPE html><html><body>Not found</body></html>");
    expect_mentions(message_of<DataError>([&] { open_tokenizer(file); }), {name, "(HTML)"});
  }
}

TEST(OpenTokenizer, RefusesDeepJsonInsteadOfCrashing) {
  const TemporaryFolder folder;
  const fs::path file = folder.write("tokenizer.json", "{\"model\":" + std::string(200'000, '['));
  expect_mentions(message_of<DataError>([&] { open_tokenizer(file); }), {"64 deep"});
}

TEST(OpenTokenizer, BelievesNoIdFarBeyondTheVocabulary) {
  const TemporaryFolder folder;
  expect_mentions(message_of<DataError>([&] {
                    open_byte_level(folder, Json::object(), [](Json& json) {
                      json["model"]["vocab"]["<far>"] = 16'000'000;
                    });
                  }),
                  {"<far>", "16000000", "allowed"});
}

TEST(Normalizer, GivesNormalForms) {
  using Kind = NormalizerStep::Kind;
  const auto form = [](Kind kind, const std::string& text) {
    return normalize({{.kind = kind, .from = {}, .to = {}}}, text);
  };
  EXPECT_EQ(form(Kind::kNfc, "e\u0301 \u212b \u1112\u1161\u11ab x"), "\u00e9 \u00c5 \ud55c x");
  EXPECT_EQ(form(Kind::kNfd, "\u00e9"), "e\u0301");
  EXPECT_EQ(form(Kind::kNfkc, "\ufb01\u00a0x"), "fi x");
  EXPECT_EQ(form(Kind::kNfkd, "\u00bd"), "1\u20442");
  // Marks of Unicode 13 and 16: tokenizers 0.23.3 does not know that they move or compose.
  EXPECT_EQ(form(Kind::kNfc, "a\U0001193e\u0316"), "a\U0001193e\u0316");
  EXPECT_EQ(form(Kind::kNfc, "\U00011935\U00011930e\u0301"), "\U00011935\U00011930\u00e9");
  const std::string nul("a\0e\u0301", 6);
  EXPECT_EQ(form(Kind::kNfc, nul.substr(0, 5)), std::string("a\0\u00e9", 4));
}

TEST(SentencePieceModel, RefusesWhatTheLibraryWouldCrashOn) {
  const TemporaryFolder folder;
  const std::string whole = read_file(kLlama / "tokenizer.model");
  const auto refusal = [&](const std::string& content) {
    const fs::path file = folder.write("m.model", content);
    return message_of<DataError>([&] { open_tokenizer(file); });
  };
  const auto piece = [](const std::string& text, const std::string& more) {
    const std::string inside = std::string("\x0A") + static_cast<char>(text.size()) + text + more;
    return std::string("\x0A") + static_cast<char>(inside.size()) + inside;
  };
  expect_mentions(refusal(whole.substr(0, whole.size() - 7)), {"m.model", "byte"});
  expect_mentions(refusal(whole + piece("", "")), {"empty piece"});
  expect_mentions(refusal(whole + piece("\xC3(", "")), {"not UTF-8"});
  expect_mentions(refusal(whole + piece("x", "\x18\x07")), {"type 7"});
  expect_mentions(refusal(whole + piece("<0xZZ>", "\x18\x06")), {"<0xZZ>", "<0xFF>"});
  expect_mentions(refusal(whole + piece("x", std::string("\x15\x00\x00\xC0\x7F", 5))),
                  {"not finite"});
  // normalizer_spec with a character map of a trie of 4 bytes whose only unit leads far away.
  const std::string map =
      std::string("\x04\x00\x00\x00", 4) + "\xFF\xFF\xFF\x7F" + std::string("a\0", 2);
  const std::string spec = std::string("\x12") + static_cast<char>(map.size()) + map;
  expect_mentions(refusal(whole + "\x1A" + static_cast<char>(spec.size()) + spec),
                  {"leads out of it"});
  const std::string announced = std::string("\x12\x08\xFF\xFF\xFF\x7F") + "abcd";
  expect_mentions(refusal(whole + "\x1A" + static_cast<char>(announced.size()) + announced),
                  {"does not fit"});
}

TEST(SentencePieceModel, LongPiecesDoNotTakeLong) {
  const TemporaryFolder folder;
  std::string content = read_file(kLlama / "tokenizer.model");
  const auto varint = [](size_t value) {
    std::string bytes;
    for (; value >= 0x80; value >>= 7) bytes += static_cast<char>(value | 0x80);
    return bytes + static_cast<char>(value);
  };
  constexpr size_t kLength = 60'000;
  for (char letter = 'a'; letter < 'i'; ++letter) {
    const std::string text(kLength, letter), piece = "\x0A" + varint(kLength) + text;
    content += "\x0A" + varint(piece.size()) + piece;
  }
  folder.write("tokenizer.model", content);
  folder.write("tokenizer_config.json", R"({"tokenizer_class": "LlamaTokenizer"})");
  const std::clock_t start = std::clock();
  const auto tokenizer = open_tokenizer(folder.path());
  EXPECT_LT(static_cast<double>(std::clock() - start) / CLOCKS_PER_SEC, 1.0);
  const auto whole = read_json(kLlama / "tokenizer.json")["model"]["vocab"].size();
  EXPECT_EQ(tokenizer->vocab_size(), static_cast<int64_t>(whole) + 8);
}

}  // namespace
}  // namespace t2r::data
