#include "data/byte_bpe_reader.h"

#include <algorithm>
#include <array>
#include <nlohmann/json.hpp>
#include <unordered_map>
#include <unordered_set>
#include <utility>

#include "base/durable_file.h"
#include "base/error.h"
#include "data/pre_tokenizer.h"
#include "data/utf8.h"

namespace t2r::data {
namespace {

using Json = nlohmann::json;
using TokenIds = std::unordered_map<std::string, int32_t>;

/// Highest id that is believed; more would be a damaged file and gigabytes of empty vocabulary.
constexpr int64_t kMaxId = (int64_t{1} << 24) - 1;
constexpr std::string_view kEndOfText = "<|endoftext|>";

/// Characters of the byte alphabet are below this.
constexpr char32_t kByteSymbolEnd = 256 + 68;

bool is_printable_byte(unsigned byte) {
  return (byte >= 0x21 && byte <= 0x7E) || (byte >= 0xA1 && byte <= 0xAC) ||
         (byte >= 0xAE && byte <= 0xFF);
}

std::array<char32_t, 256> make_byte_symbols() {
  std::array<char32_t, 256> symbols{};
  char32_t next = 256;
  for (unsigned byte = 0; byte < 256; ++byte) {
    symbols[byte] = is_printable_byte(byte) ? char32_t{byte} : next++;
  }
  return symbols;
}

/// Parses JSON and refuses a key that occurs twice in one object, of which parsers keep either.
Json parse_json(const std::filesystem::path& path) {
  std::vector<std::unordered_set<std::string>> keys;
  const auto check_keys = [&](int, Json::parse_event_t event, Json& parsed) {
    if (event == Json::parse_event_t::object_start) keys.emplace_back();
    if (event == Json::parse_event_t::object_end) keys.pop_back();
    if (event == Json::parse_event_t::key) {
      const auto key = parsed.get<std::string>();
      if (!keys.back().insert(key).second) {
        throw DataError(concat(path.string(), ": key \"", key, "\" occurs twice in one object"));
      }
    }
    return true;
  };
  return Json::parse(read_file(path), check_keys);
}

/// Runs `read`, and turns JSON's own errors into DataErrors that name the file.
template <class Read>
ByteBpeDefinition with_path(const std::filesystem::path& path, const Read& read) {
  try {
    return read();
  } catch (const Json::exception& error) {
    throw DataError(concat(path.string(), ": not the JSON that was expected: ", error.what()));
  }
}

[[noreturn]] void refuse(const std::filesystem::path& path,
                         const std::string& what,
                         const std::string& allowed) {
  throw DataError(concat(path.string(), ": ", what, " is not supported; allowed: ", allowed));
}

const Json& find(const Json& object, const char* key) {
  static const Json null;
  const auto entry = object.find(key);
  return entry == object.end() ? null : *entry;
}

bool is_set(const Json& object, const char* key) {
  const Json& value = find(object, key);
  return !value.is_null() && value != Json("") && value != Json(false) && value != Json(0.0);
}

void place_token(const std::filesystem::path& path,
                 const std::string& token,
                 int64_t id,
                 std::vector<std::string>* vocabulary) {
  if (id < 0 || id > kMaxId) {
    throw DataError(
        concat(path.string(), ": token \"", token, "\" has id ", id, "; allowed: 0 to ", kMaxId));
  }
  if (token.empty())
    throw DataError(concat(path.string(), ": the token with id ", id, " is empty"));
  const auto index = static_cast<size_t>(id);
  if (index >= vocabulary->size()) vocabulary->resize(index + 1);
  std::string& place = (*vocabulary)[index];
  if (!place.empty() && place != token) {
    throw DataError(concat(
        path.string(), ": tokens \"", place, "\" and \"", token, "\" have the same id ", id));
  }
  place = token;
}

TokenIds read_vocabulary(const std::filesystem::path& path,
                         const Json& json,
                         std::vector<std::string>* vocabulary) {
  if (!json.is_object() || json.empty()) {
    throw DataError(concat(path.string(), ": the vocabulary must be an object of token: id"));
  }
  TokenIds ids;
  for (const auto& [token, id] : json.items()) {
    if (!id.is_number_integer()) {
      throw DataError(
          concat(path.string(), ": token \"", token, "\" has id ", id.dump(), ", no integer"));
    }
    place_token(path, token, id.get<int64_t>(), vocabulary);
    ids.emplace(token, id.get<int32_t>());
  }
  return ids;
}

/// @param where  position of the merge in the file, for messages: "merge 3", "line 5"
BpeMerge resolve_merge(const std::filesystem::path& path,
                       const std::string& where,
                       const std::pair<std::string, std::string>& parts,
                       const TokenIds& ids) {
  const auto look_up = [&](const std::string& token) {
    const auto found = ids.find(token);
    if (found == ids.end()) {
      throw DataError(concat(path.string(),
                             ": ",
                             where,
                             " (\"",
                             parts.first,
                             " ",
                             parts.second,
                             "\") needs token \"",
                             token,
                             "\", which the vocabulary lacks"));
    }
    return found->second;
  };
  return {look_up(parts.first), look_up(parts.second), look_up(parts.first + parts.second)};
}

std::pair<std::string, std::string> split_merge(const std::filesystem::path& path,
                                                const std::string& where,
                                                const std::string& text) {
  const size_t space = text.find(' ');
  if (space == std::string::npos || text.find(' ', space + 1) != std::string::npos) {
    throw DataError(concat(path.string(),
                           ": ",
                           where,
                           " is \"",
                           text,
                           "\"; a merge is two tokens with one space between them"));
  }
  return {text.substr(0, space), text.substr(space + 1)};
}

std::vector<BpeMerge> read_json_merges(const std::filesystem::path& path,
                                       const Json& json,
                                       const TokenIds& ids) {
  std::vector<BpeMerge> merges;
  for (const Json& entry : json) {
    const std::string where = concat("merge ", merges.size());
    const auto parts = entry.is_string() ? split_merge(path, where, entry.get<std::string>())
                                         : entry.get<std::pair<std::string, std::string>>();
    merges.push_back(resolve_merge(path, where, parts, ids));
  }
  return merges;
}

std::vector<BpeMerge> read_merge_lines(const std::filesystem::path& path, const TokenIds& ids) {
  const std::string content = read_file(path);
  std::istringstream lines(content);
  std::vector<BpeMerge> merges;
  std::string line;
  for (int number = 1; std::getline(lines, line); ++number) {
    if (line.ends_with('\r')) line.pop_back();
    if (line.starts_with("#version")) continue;
    const std::string where = concat("line ", number);
    merges.push_back(resolve_merge(path, where, split_merge(path, where, line), ids));
  }
  return merges;
}

std::string read_split_pattern(const std::filesystem::path& path, const Json& stage) {
  const Json& pattern = find(find(stage, "pattern"), "Regex");
  if (!pattern.is_string()) refuse(path, "Split by " + find(stage, "pattern").dump(), "Regex");
  if (find(stage, "behavior") != "Isolated") {
    refuse(path, "Split with behavior " + find(stage, "behavior").dump(), "Isolated");
  }
  return pattern.get<std::string>();
}

/// Appends the stage's patterns; returns whether it ends the pre-tokenizer, as ByteLevel does.
bool read_pre_tokenizer(const std::filesystem::path& path,
                        const Json& stage,
                        std::vector<std::string>* patterns) {
  const std::string type = stage.is_null() ? "null" : stage.at("type").get<std::string>();
  if (type == "Sequence") {
    bool ended = false;
    for (const Json& inner : stage.at("pretokenizers")) {
      if (ended) refuse(path, "a pre-tokenizer after ByteLevel", "ByteLevel as the last one");
      ended = read_pre_tokenizer(path, inner, patterns);
    }
    return ended;
  }
  if (type == "Digits") {
    const bool individual = is_set(stage, "individual_digits");
    patterns->emplace_back(individual ? kDigitPattern : kDigitRunPattern);
  } else if (type == "Split") {
    patterns->push_back(read_split_pattern(path, stage));
  } else if (type == "ByteLevel") {
    if (is_set(stage, "add_prefix_space")) {
      refuse(path, "ByteLevel with add_prefix_space, which alters the text,", "false");
    }
    const Json& use_regex = find(stage, "use_regex");
    if (use_regex.is_null() || use_regex.get<bool>()) patterns->emplace_back(kGpt2Pattern);
    return true;
  } else {
    refuse(path, "pre_tokenizer " + type, "Sequence, Digits, Split, ByteLevel");
  }
  return false;
}

void check_model(const std::filesystem::path& path, const Json& json) {
  const Json& normalizer = find(json, "normalizer");
  if (!normalizer.is_null()) refuse(path, "normalizer " + find(normalizer, "type").dump(), "null");
  const Json& type = find(json.at("model"), "type");
  if (!type.is_null() && type != "BPE") {
    refuse(path, "model.type " + type.dump(), "BPE; name a sentencepiece file (*.model) directly");
  }
  for (const char* key :
       {"dropout", "continuing_subword_prefix", "end_of_word_suffix", "byte_fallback"}) {
    if (is_set(json.at("model"), key)) {
      refuse(path, concat("model.", key, " ", json.at("model").at(key).dump()), "null");
    }
  }
}

/// An unknown token can only come up where a byte of valid UTF-8 has no token.
void check_unknown_token(const std::filesystem::path& path,
                         const Json& model,
                         const TokenIds& ids) {
  if (!is_set(model, "unk_token")) return;
  for (unsigned byte = 0; byte < 0xF5; ++byte) {
    std::string symbol;
    append_utf8(byte_symbol(static_cast<uint8_t>(byte)), &symbol);
    if (byte != 0xC0 && byte != 0xC1 && !ids.contains(symbol)) {
      refuse(path,
             concat("model.unk_token with a vocabulary that lacks byte ", byte),
             "unk_token null, or a token for every byte");
    }
  }
}

AddedToken read_added_token(const std::filesystem::path& path, const Json& json) {
  const AddedToken token = {.content = json.at("content").get<std::string>(),
                            .id = json.at("id").get<int32_t>(),
                            .normalized = is_set(json, "normalized"),
                            .strips_left = is_set(json, "lstrip"),
                            .strips_right = is_set(json, "rstrip")};
  if (is_set(json, "single_word")) {
    refuse(path, "added token \"" + token.content + "\" with single_word", "false");
  }
  return token;
}

void read_added_tokens(const std::filesystem::path& path,
                       const Json& json,
                       const TokenIds& ids,
                       ByteBpeDefinition* definition) {
  std::unordered_set<std::string> seen;
  auto next_id = static_cast<int32_t>(ids.size());
  for (const Json& entry : json) {
    const AddedToken token = read_added_token(path, entry);
    const auto known = ids.find(token.content);
    if (known != ids.end() && known->second != token.id) {
      throw DataError(concat(path.string(),
                             ": added token \"",
                             token.content,
                             "\" has id ",
                             token.id,
                             ", and ",
                             known->second,
                             " in the vocabulary"));
    }
    if (!seen.insert(token.content).second) {
      throw DataError(concat(path.string(), ": added token \"", token.content, "\" occurs twice"));
    }
    // Hugging Face numbers them so, whatever the file says; ids would differ from its own.
    if (known == ids.end() && token.id != next_id) {
      throw DataError(concat(path.string(),
                             ": added token \"",
                             token.content,
                             "\" has id ",
                             token.id,
                             "; the first free id after the vocabulary is ",
                             next_id));
    }
    next_id = std::max(next_id, token.id + 1);
    place_token(path, token.content, token.id, &definition->vocabulary);
    definition->added_tokens.push_back(token);
  }
}

}  // namespace

char32_t byte_symbol(uint8_t byte) {
  static const std::array<char32_t, 256> symbols = make_byte_symbols();
  return symbols[byte];
}

std::optional<std::string> decode_byte_symbols(std::string_view token) {
  static const std::array<int, kByteSymbolEnd> bytes = [] {
    std::array<int, kByteSymbolEnd> inverse{};
    inverse.fill(-1);
    for (unsigned byte = 0; byte < 256; ++byte) {
      inverse[byte_symbol(static_cast<uint8_t>(byte))] = static_cast<int>(byte);
    }
    return inverse;
  }();
  std::string decoded;
  for (size_t offset = 0; offset < token.size();) {
    const Utf8Step step = read_utf8(token, offset);
    if (step.code_point >= kByteSymbolEnd || bytes[step.code_point] < 0) return std::nullopt;
    decoded.push_back(static_cast<char>(bytes[step.code_point]));
    offset += step.num_bytes;
  }
  return decoded;
}

ByteBpeDefinition read_tokenizer_json(const std::filesystem::path& path) {
  return with_path(path, [&] {
    const Json json = parse_json(path);
    check_model(path, json);
    const Json& model = json.at("model");
    ByteBpeDefinition definition;
    const TokenIds ids = read_vocabulary(path, model.at("vocab"), &definition.vocabulary);
    check_unknown_token(path, model, ids);
    definition.merges = read_json_merges(path, model.at("merges"), ids);
    definition.ignore_merges = is_set(model, "ignore_merges");
    if (!read_pre_tokenizer(path, find(json, "pre_tokenizer"), &definition.patterns)) {
      refuse(path, "a pre_tokenizer without ByteLevel", "ByteLevel as the last one");
    }
    read_added_tokens(path, find(json, "added_tokens"), ids, &definition);
    definition.files = {path};
    return definition;
  });
}

ByteBpeDefinition read_vocabulary_and_merges(const std::filesystem::path& vocabulary,
                                             const std::filesystem::path& merges) {
  return with_path(vocabulary, [&] {
    const std::filesystem::path added = vocabulary.parent_path() / "added_tokens.json";
    if (std::filesystem::exists(added)) {
      refuse(added, "added_tokens.json beside " + vocabulary.filename().string(), "tokenizer.json");
    }
    ByteBpeDefinition definition;
    const TokenIds ids =
        read_vocabulary(vocabulary, parse_json(vocabulary), &definition.vocabulary);
    definition.merges = read_merge_lines(merges, ids);
    definition.patterns = {std::string(kGpt2Pattern)};
    const auto end_of_text = ids.find(std::string(kEndOfText));
    if (end_of_text != ids.end()) {
      definition.added_tokens = {{.content = end_of_text->first, .id = end_of_text->second}};
    }
    definition.files = {vocabulary, merges};
    return definition;
  });
}

}  // namespace t2r::data
