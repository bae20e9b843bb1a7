#pragma once

#include <gtest/gtest.h>

#include <cstdint>
#include <filesystem>
#include <functional>
#include <memory>
#include <nlohmann/json.hpp>
#include <string>
#include <string_view>
#include <vector>

#include "base/durable_file.h"
#include "base/error.h"
#include "base/text.h"
#include "data/tokenizers/sentencepiece_tokenizer.h"
#include "data/tokenizers/tokenizer.h"
#include "tests/data_shards.h"
#include "tests/support.h"

namespace t2r::test {

namespace fs = std::filesystem;
using Json = nlohmann::json;
using data::open_tokenizer;
using data::SentencePieceTraining;
using data::SentencePieceType;
using data::Tokenizer;

inline const fs::path kRoot = T2R_SOURCE_DIR;
inline const fs::path kGoldens = kRoot / "tests/goldens/tokenizers";

inline Json read_json(const fs::path& path) {
  return Json::parse(read_file(path));
}

inline std::string decode_base64(const std::string& text) {
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

inline const std::vector<std::string>& hostile_strings() {
  static const std::vector<std::string> strings = [] {
    std::vector<std::string> decoded;
    for (const Json& entry : read_json(kGoldens / "hostile_strings.json")) {
      decoded.push_back(decode_base64(entry.get<std::string>()));
    }
    return decoded;
  }();
  return strings;
}

inline void expect_mentions(const std::string& message, const std::vector<std::string>& parts) {
  for (const std::string& part : parts) {
    EXPECT_NE(message.find(part), std::string::npos) << "\"" << part << "\" not in: " << message;
  }
}

/// tiny_byte_level's tokenizer.json after `change`, opened.
inline std::unique_ptr<Tokenizer> open_changed(const std::function<void(Json&)>& change) {
  const TemporaryFolder folder;
  Json json = read_json(kGoldens / "tiny_byte_level/tokenizer.json");
  change(json);
  return open_tokenizer(folder.write("tokenizer.json", json.dump()));
}

inline std::string refusal_of(const std::function<void(Json&)>& change) {
  return message_of<DataError>([&] { open_changed(change); });
}

/// Lines with enough variety for a few hundred pieces.
inline std::string training_text() {
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

inline SentencePieceTraining tiny_training(const TemporaryFolder& folder, SentencePieceType type) {
  return {.inputs = {folder.write("text.txt", training_text())},
          .output_model =
              folder.path() / (type == SentencePieceType::kBpe ? "bpe.model" : "unigram.model"),
          .vocab_size = 400,
          .type = type,
          .character_coverage = 1.0};
}

}  // namespace t2r::test
