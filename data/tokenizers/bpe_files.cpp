#include "data/tokenizers/bpe_files.h"

#include <algorithm>
#include <array>
#include <sstream>

#include "base/durable_file.h"
#include "base/error.h"
#include "base/foreign_file.h"
#include "base/json.h"
#include "base/log.h"
#include "base/quoted_name.h"
#include "data/tokenizers/pre_tokenizer.h"
#include "data/unicode/utf8.h"

namespace t2r::data {
namespace {

namespace fs = std::filesystem;
using Json = nlohmann::ordered_json;

constexpr std::string_view kEndOfText = "<|endoftext|>";

/// Ids without a token that a small vocabulary may have; each costs memory.
constexpr int64_t kMaxHoles = 1 << 16;

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

std::vector<BpeMerge> read_merge_lines(std::string_view content,
                                       const fs::path& path,
                                       const TokenIds& ids) {
  std::istringstream lines{std::string(content)};
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

constexpr std::string_view kQwen2Pattern =
    R"((?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*)"
    R"(|\s*[\r\n]+|\s+(?!\S)|\s+)";

/// What transformers' classes do around a vocabulary and merges, which the files do not say.
void apply_class(const fs::path& vocabulary,
                 const TokenizerConfig& config,
                 BpeDefinition* definition) {
  const std::string& name = config.tokenizer_class;
  if (name == "Qwen2Tokenizer") definition->patterns = {std::string(kQwen2Pattern)};
  if (name == "Qwen2Tokenizer" || name == "GPTNeoXTokenizer") {
    definition->normalizer = {{.kind = NormalizerStep::Kind::kNfc, .from = {}, .to = {}}};
  }
  constexpr std::string_view kKnown[] = {"",
                                         "GPT2Tokenizer",
                                         "CodeGenTokenizer",
                                         "GPTNeoXTokenizer",
                                         "Qwen2Tokenizer",
                                         "PreTrainedTokenizer",
                                         "TokenizersBackend"};
  if (std::ranges::find(kKnown, name) == std::end(kKnown)) {
    throw DataError(
        concat(vocabulary.string(),
               ": tokenizer_class ",
               quoted_name(name),
               " of a vocabulary and merges is not supported; allowed: GPT2Tokenizer, "
               "CodeGenTokenizer, GPTNeoXTokenizer, Qwen2Tokenizer, or a tokenizer.json "
               "(save_pretrained of transformers writes one)"));
  }
  if (config.adds_prefix_space.value_or(false)) {
    throw DataError(concat(vocabulary.string(),
                           ": add_prefix_space true, which alters the text, is not supported; "
                           "allowed: false"));
  }
}

}  // namespace

TokenIds index_of(const std::vector<std::string>& vocabulary) {
  TokenIds ids;
  for (int32_t id = 0; id < std::ssize(vocabulary); ++id) {
    const std::string& token = vocabulary[static_cast<size_t>(id)];
    if (!token.empty()) ids[token] = id;
  }
  return ids;
}

std::optional<int32_t> find_token(const fs::path& file,
                                  const std::optional<std::string>& name,
                                  const TokenIds& ids) {
  if (!name) return std::nullopt;
  const auto found = ids.find(*name);
  if (found != ids.end()) return found->second;
  log::info(concat(file.string(),
                   ": the tokenizer's configuration names ",
                   quoted_name(*name),
                   ", which the vocabulary lacks; it is ignored"));
  return std::nullopt;
}

TokenIds read_vocabulary(const fs::path& path,
                         const Json& json,
                         std::vector<std::string>* vocabulary) {
  if (!json.is_object() || json.empty()) {
    throw DataError(concat(path.string(), ": the vocabulary must be an object of token: id"));
  }
  const int64_t limit = kMaxHoles + 4 * static_cast<int64_t>(json.size());
  TokenIds ids;
  for (const auto& [token, id] : json.items()) {
    if (!id.is_number_integer() || (id.is_number_unsigned() && id.get<uint64_t>() > INT64_MAX)) {
      throw DataError(concat(path.string(),
                             ": token ",
                             quoted_name(token),
                             " has id ",
                             id.dump().substr(0, 80),
                             ", no integer"));
    }
    if (id.get<int64_t>() > limit) {
      throw DataError(concat(path.string(),
                             ": token ",
                             quoted_name(token),
                             " has id ",
                             id.get<int64_t>(),
                             "; allowed in a vocabulary of ",
                             json.size(),
                             " tokens: 0 to ",
                             limit));
    }
    place_token(path, token, id.get<int64_t>(), vocabulary);
    ids.emplace(token, id.get<int32_t>());
  }
  return ids;
}

void place_token(const fs::path& path,
                 const std::string& token,
                 int64_t id,
                 std::vector<std::string>* vocabulary) {
  if (id < 0 || id > kMaxTokenId) {
    throw DataError(concat(path.string(),
                           ": token ",
                           quoted_name(token),
                           " has id ",
                           id,
                           "; allowed: 0 to ",
                           kMaxTokenId));
  }
  if (token.empty())
    throw DataError(concat(path.string(), ": the token with id ", id, " is empty"));
  const auto index = static_cast<size_t>(id);
  if (index >= vocabulary->size()) vocabulary->resize(index + 1);
  std::string& place = (*vocabulary)[index];
  if (!place.empty() && place != token) {
    throw DataError(concat(path.string(),
                           ": tokens ",
                           quoted_name(place),
                           " and ",
                           quoted_name(token),
                           " have the same id ",
                           id));
  }
  place = token;
}

BpeMerge resolve_merge(const fs::path& path,
                       const std::string& where,
                       const std::pair<std::string, std::string>& parts,
                       const TokenIds& ids) {
  const auto look_up = [&](const std::string& token) {
    const auto found = ids.find(token);
    if (found == ids.end()) {
      throw DataError(concat(path.string(),
                             ": ",
                             where,
                             " (",
                             quoted_name(parts.first + " " + parts.second),
                             ") needs token ",
                             quoted_name(token),
                             ", which the vocabulary lacks"));
    }
    return found->second;
  };
  return {look_up(parts.first), look_up(parts.second), look_up(parts.first + parts.second)};
}

std::pair<std::string, std::string> split_merge(const fs::path& path,
                                                const std::string& where,
                                                const std::string& text) {
  const size_t space = text.find(' ');
  if (space == std::string::npos || text.find(' ', space + 1) != std::string::npos) {
    throw DataError(concat(path.string(),
                           ": ",
                           where,
                           " is ",
                           quoted_name(text),
                           "; a merge is two tokens with one space between them"));
  }
  return {text.substr(0, space), text.substr(space + 1)};
}

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

BpeDefinition parse_vocabulary_and_merges(std::string_view vocabulary_text,
                                          std::string_view merges_text,
                                          const fs::path& vocabulary,
                                          const fs::path& merges) {
  refuse_foreign_content(merges_text, merges.string());
  BpeDefinition definition;
  const TokenIds ids =
      read_vocabulary(vocabulary,
                      parse_json(vocabulary_text, vocabulary.string(), kVocabularyJsonLimits),
                      &definition.vocabulary);
  definition.merges = read_merge_lines(merges_text, merges, ids);
  definition.patterns = {std::string(kGpt2Pattern)};
  const auto end_of_text = ids.find(std::string(kEndOfText));
  if (end_of_text != ids.end()) {
    definition.added_tokens = {
        {.content = end_of_text->first, .id = end_of_text->second, .special = true}};
  }
  definition.files = {vocabulary, merges};
  return definition;
}

BpeDefinition read_vocabulary_and_merges(const fs::path& vocabulary, const fs::path& merges) {
  BpeDefinition definition =
      parse_vocabulary_and_merges(read_file(vocabulary), read_file(merges), vocabulary, merges);
  const TokenizerConfig config = read_tokenizer_config(vocabulary.parent_path());
  apply_class(vocabulary, config, &definition);
  apply_config(config, &definition);
  if (config.adds_begin_of_text.value_or(false)) {
    definition.begin_of_text = find_token(vocabulary,
                                          config.begin_of_text.value_or(std::string(kEndOfText)),
                                          index_of(definition.vocabulary));
  }
  return definition;
}

void apply_config(const TokenizerConfig& config, BpeDefinition* definition) {
  TokenIds ids = index_of(definition->vocabulary);
  const fs::path file = config.files.empty() ? fs::path() : config.files.front();
  for (const AddedToken& token : config.added_tokens) {
    const auto known = ids.find(token.content);
    const auto next = static_cast<int32_t>(definition->vocabulary.size());
    if (known != ids.end() ? known->second != token.id : token.id != next) {
      throw DataError(concat(file.parent_path().string(),
                             ": the configuration's added token ",
                             quoted_name(token.content),
                             " has id ",
                             token.id,
                             "; in the tokenizer ",
                             known != ids.end() ? concat("it has ", known->second)
                                                : concat("the next free id is ", next)));
    }
    place_token(file, token.content, token.id, &definition->vocabulary);
    if (ids.emplace(token.content, token.id).second) definition->beside_vocabulary.insert(token.id);
    const auto entry =
        std::ranges::find(definition->added_tokens, token.content, &AddedToken::content);
    if (entry == definition->added_tokens.end()) {
      definition->added_tokens.push_back(token);
    } else {
      const bool is_special = entry->special || token.special;
      *entry = token;
      entry->special = is_special;
    }
  }
  for (const AddedToken& token : definition->added_tokens) {
    if (token.special) definition->special.insert(token.id);
  }
  for (const std::string& token : config.special) {
    if (const auto known = ids.find(token); known != ids.end())
      definition->special.insert(known->second);
  }
  if (const auto end = find_token(file, config.end_of_text, ids)) definition->end_of_document = end;
  definition->files.insert(definition->files.end(), config.files.begin(), config.files.end());
}

}  // namespace t2r::data
