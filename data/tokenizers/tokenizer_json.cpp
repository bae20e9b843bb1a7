#include "data/tokenizers/tokenizer_json.h"

#include <algorithm>
#include <unordered_set>
#include <utility>

#include "base/durable_file.h"
#include "base/error.h"
#include "base/json.h"
#include "base/log.h"
#include "base/quoted_name.h"
#include "data/tokenizers/bpe_files.h"
#include "data/tokenizers/llama_tokenizer.h"
#include "data/tokenizers/pre_tokenizer.h"
#include "data/unicode/utf8.h"

namespace t2r::data {
namespace {

namespace fs = std::filesystem;
using Json = nlohmann::ordered_json;

constexpr const char* kSpace = "\u2581";

[[noreturn]] void refuse(const fs::path& path,
                         const std::string& what,
                         const std::string& allowed) {
  throw UnsupportedTokenizer(
      concat(path.string(), ": ", what, " is not supported; allowed: ", allowed));
}

/// A value for a message, at most a line of it.
std::string shown(const Json& json) {
  const std::string text = json.dump(-1, ' ', true, Json::error_handler_t::replace);
  return text.size() <= 80 ? text : text.substr(0, 80) + "...";
}

const Json& find(const Json& object, const char* key) {
  static const Json null;
  if (!object.is_object()) return null;
  const auto entry = object.find(key);
  return entry == object.end() ? null : *entry;
}

bool is_set(const Json& object, const char* key) {
  const Json& value = find(object, key);
  return !value.is_null() && value != Json("") && value != Json(false) && value != Json(0.0);
}

std::string type_of(const fs::path& path, const Json& json, const char* what) {
  const Json& type = find(json, "type");
  if (!type.is_string()) refuse(path, concat(what, " ", shown(json)), "an object with a type");
  return type.get<std::string>();
}

/// The parts of a Sequence, or the one part that it is; none of null.
std::vector<const Json*> parts_of(const fs::path& path,
                                  const Json& json,
                                  const char* what,
                                  const char* list) {
  if (json.is_null()) return {};
  if (type_of(path, json, what) != "Sequence") return {&json};
  const Json& inner = find(json, list);
  if (!inner.is_array()) refuse(path, concat(what, " Sequence without ", list), "a list of parts");
  std::vector<const Json*> parts;
  for (const Json& part : inner) {
    for (const Json* leaf : parts_of(path, part, what, list)) parts.push_back(leaf);
  }
  return parts;
}

std::vector<BpeMerge> read_json_merges(const fs::path& path,
                                       const Json& json,
                                       const TokenIds& ids) {
  std::vector<BpeMerge> merges;
  if (!json.is_array()) refuse(path, "model.merges " + shown(json), "an array");
  for (const Json& entry : json) {
    const std::string where = concat("merge ", merges.size());
    const auto parts = entry.is_string() ? split_merge(path, where, entry.get<std::string>())
                                         : entry.get<std::pair<std::string, std::string>>();
    merges.push_back(resolve_merge(path, where, parts, ids));
  }
  return merges;
}

// ---- normalizer ----

NormalizerStep read_normalizer_step(const fs::path& path, const Json& json) {
  using Kind = NormalizerStep::Kind;
  const std::string type = type_of(path, json, "normalizer");
  constexpr std::pair<const char*, Kind> kForms[] = {
      {"NFC", Kind::kNfc}, {"NFD", Kind::kNfd}, {"NFKC", Kind::kNfkc}, {"NFKD", Kind::kNfkd}};
  for (const auto& [name, kind] : kForms) {
    if (type == name) return {.kind = kind, .from = {}, .to = {}};
  }
  if (type == "Prepend" && find(json, "prepend").is_string()) {
    return {.kind = Kind::kPrepend, .from = {}, .to = json.at("prepend").get<std::string>()};
  }
  if (type == "Replace" && find(json, "content").is_string()) {
    const Json& from = find(find(json, "pattern"), "String");
    if (from.is_string() && from != "") {
      return {.kind = Kind::kReplace,
              .from = from.get<std::string>(),
              .to = json.at("content").get<std::string>()};
    }
  }
  refuse(path,
         "normalizer " + shown(json),
         "NFC, NFD, NFKC, NFKD, Prepend, Replace of a String, null");
}

// ---- pre_tokenizer ----

std::string read_split_pattern(const fs::path& path, const Json& stage) {
  if (find(stage, "behavior") != "Isolated") {
    refuse(path, "Split with behavior " + shown(find(stage, "behavior")), "Isolated");
  }
  const Json& pattern = find(stage, "pattern");
  if (const Json& text = find(pattern, "String"); text.is_string()) {
    std::string escaped;
    for (const char c : text.get<std::string>()) {
      if (std::string_view(R"(\^$.|?*+()[]{}-)").find(c) != std::string_view::npos) escaped += '\\';
      escaped += c;
    }
    return escaped;
  }
  const Json& regex = find(pattern, "Regex");
  if (!regex.is_string()) refuse(path, "Split by " + shown(pattern), "Regex, String");
  return regex.get<std::string>();
}

Metaspace read_metaspace(const fs::path& path, const Json& stage) {
  using Prefix = Metaspace::Prefix;
  if (find(stage, "replacement") != kSpace) {
    refuse(path, "Metaspace with replacement " + shown(find(stage, "replacement")), "U+2581");
  }
  const Json& scheme = find(stage, "prepend_scheme");
  const Json& prefix = find(stage, "add_prefix_space");  // of older files
  if (!scheme.is_null() && prefix == false && scheme != "never") {
    refuse(path,
           concat("Metaspace with add_prefix_space ", shown(prefix), " beside ", shown(scheme)),
           "one of the two");
  }
  Metaspace metaspace;
  if (scheme == "first") {
    metaspace.prefix = Prefix::kFirst;
  } else if (scheme == "never" || (scheme.is_null() && prefix == false)) {
    metaspace.prefix = Prefix::kNever;
  } else if (!scheme.is_null() && scheme != "always") {
    refuse(path, "Metaspace with prepend_scheme " + shown(scheme), "always, first, never");
  }
  metaspace.splits = find(stage, "split") != false;
  return metaspace;
}

void read_pre_tokenizer(const fs::path& path, const Json& json, BpeDefinition* definition) {
  definition->byte_level = false;
  for (const Json* part : parts_of(path, json, "pre_tokenizer", "pretokenizers")) {
    const Json& stage = *part;
    const std::string type = type_of(path, stage, "pre_tokenizer");
    if (definition->byte_level)
      refuse(path, "a pre-tokenizer after ByteLevel", "ByteLevel as the last one");
    if (type == "Digits") {
      definition->patterns.emplace_back(is_set(stage, "individual_digits") ? kDigitPattern
                                                                           : kDigitRunPattern);
    } else if (type == "Split") {
      definition->patterns.push_back(read_split_pattern(path, stage));
    } else if (type == "Metaspace") {
      if (definition->metaspace || !definition->patterns.empty()) {
        refuse(path, "Metaspace after another pre-tokenizer", "Metaspace as the first one");
      }
      definition->metaspace = read_metaspace(path, stage);
    } else if (type == "ByteLevel") {
      if (is_set(stage, "add_prefix_space")) {
        refuse(path, "ByteLevel with add_prefix_space, which alters the text,", "false");
      }
      if (find(stage, "use_regex") != false) definition->patterns.emplace_back(kGpt2Pattern);
      definition->byte_level = true;
    } else {
      refuse(path,
             "pre_tokenizer " + quoted_name(type),
             "Sequence, Metaspace, Digits, Split, ByteLevel");
    }
  }
  if (definition->byte_level && definition->metaspace) {
    refuse(path, "Metaspace with ByteLevel", "one of them");
  }
}

// ---- decoder, of a tokenizer on characters ----

void read_decoder(const fs::path& path, const Json& json, BpeDefinition* definition) {
  bool fused = false, stripped = false;
  for (const Json* part : parts_of(path, json, "decoder", "decoders")) {
    const std::string type = type_of(path, *part, "decoder");
    if (type == "Replace" && !stripped && find(find(*part, "pattern"), "String") == kSpace &&
        find(*part, "content") == " ") {
      definition->decodes_spaces = true;
    } else if (type == "Metaspace" && !fused && find(*part, "replacement") == kSpace) {
      definition->decodes_spaces = true;
      definition->text_rules.strips_first_space =
          find(*part, "prepend_scheme") != "never" && find(*part, "add_prefix_space") != false;
    } else if (type == "ByteFallback" && !fused) {
      definition->decodes_bytes = true;
      definition->text_rules.judges_byte_runs_whole = true;
    } else if (type == "Fuse") {
      fused = true;
    } else if (type == "Strip" && fused && !stripped && find(*part, "content") == " " &&
               find(*part, "stop") == 0 &&
               (find(*part, "start") == 0 || find(*part, "start") == 1)) {
      definition->text_rules.strips_first_space = find(*part, "start") == 1;
      stripped = true;
    } else {
      refuse(path,
             concat("decoder ",
                    shown(*part),
                    stripped ? " behind Strip"
                    : fused  ? " behind Fuse"
                             : ""),
             "Replace of U+2581, Metaspace, ByteFallback, Fuse and one Strip, in this order");
    }
  }
  if (json.is_null())
    refuse(path, "decoder null", "a decoder, where the pre_tokenizer has no ByteLevel");
}

// ---- post_processor ----

std::optional<int32_t> find_begin_of_text(const fs::path& path,
                                          const Json& json,
                                          size_t vocab_size) {
  std::vector<int64_t> ids;
  for (const Json* part : parts_of(path, json, "post_processor", "processors")) {
    const std::string type = type_of(path, *part, "post_processor");
    if (type == "BertProcessing" || type == "RobertaProcessing") {
      ids.push_back(integer_of(part->at("cls").at(1)).value_or(-1));
    }
    if (type != "TemplateProcessing") continue;
    for (const Json& piece : part->at("single")) {
      const Json& token = find(piece, "SpecialToken");
      if (token.is_null()) break;
      const auto name = token.at("id").get<std::string>();
      for (const auto& [known, special] : part->at("special_tokens").items()) {
        if (known != name) continue;
        for (const Json& id : special.at("ids")) ids.push_back(integer_of(id).value_or(-1));
      }
    }
  }
  if (ids.size() > 1) {
    log::info(concat(path.string(),
                     ": the post_processor puts ",
                     ids.size(),
                     " tokens in front of a text; t2r adds none of them"));
  }
  if (ids.size() != 1) return std::nullopt;
  if (ids[0] < 0 || ids[0] >= static_cast<int64_t>(vocab_size)) {
    refuse(path, concat("post_processor with token id ", ids[0]), concat("0 to ", vocab_size - 1));
  }
  return static_cast<int32_t>(ids[0]);
}

// ---- model ----

void check_model(const fs::path& path, const Json& json) {
  const Json& model = json.at("model");
  const Json& type = find(model, "type");
  if (!type.is_null() && type != "BPE") {
    refuse(path, "model.type " + shown(type), "BPE; name a sentencepiece file (*.model) directly");
  }
  for (const char* key : {"dropout", "continuing_subword_prefix", "end_of_word_suffix"}) {
    if (is_set(model, key)) refuse(path, concat("model.", key, " ", shown(model.at(key))), "null");
  }
}

/// An unknown token can only come up where a byte of valid UTF-8 has no token.
void check_unknown_token(const fs::path& path, const Json& model, const TokenIds& ids) {
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

int32_t read_id(const fs::path& path, const Json& json) {
  const Json& id = find(json, "id");
  if (!id.is_number_integer() || id < 0 || id > kMaxTokenId) {
    refuse(path, "added token with id " + shown(id), concat("0 to ", kMaxTokenId));
  }
  return id.get<int32_t>();
}

AddedToken read_added_token(const fs::path& path, const Json& json) {
  if (find(json, "content") == "") refuse(path, "an empty added token", "one character or more");
  return {.content = json.at("content").get<std::string>(),
          .id = read_id(path, json),
          .normalized = is_set(json, "normalized"),
          .strips_left = is_set(json, "lstrip"),
          .strips_right = is_set(json, "rstrip"),
          .single_word = is_set(json, "single_word"),
          .special = is_set(json, "special")};
}

void read_added_tokens(const fs::path& path,
                       const Json& json,
                       const TokenIds& ids,
                       BpeDefinition* definition) {
  std::unordered_set<std::string> seen;
  auto next_id = static_cast<int32_t>(ids.size());
  for (const Json& entry : json) {
    const AddedToken token = read_added_token(path, entry);
    const auto known = ids.find(token.content);
    if (known != ids.end() && known->second != token.id) {
      throw DataError(concat(path.string(),
                             ": added token ",
                             quoted_name(token.content),
                             " has id ",
                             token.id,
                             ", and ",
                             known->second,
                             " in the vocabulary"));
    }
    if (!seen.insert(token.content).second) {
      throw DataError(
          concat(path.string(), ": added token ", quoted_name(token.content), " occurs twice"));
    }
    // Hugging Face numbers them so, whatever the file says; ids would differ from its own.
    if (known == ids.end() && token.id != next_id) {
      throw DataError(concat(path.string(),
                             ": added token ",
                             quoted_name(token.content),
                             " has id ",
                             token.id,
                             "; the first free id after the vocabulary is ",
                             next_id));
    }
    next_id = std::max(next_id, token.id + 1);
    place_token(path, token.content, token.id, &definition->vocabulary);
    if (known == ids.end()) definition->beside_vocabulary.insert(token.id);
    definition->added_tokens.push_back(token);
  }
}

BpeDefinition read_definition(const fs::path& path,
                              const Json& json,
                              const TokenizerConfig& config) {
  check_model(path, json);
  const Json& model = json.at("model");
  BpeDefinition definition;
  const TokenIds ids = read_vocabulary(path, model.at("vocab"), &definition.vocabulary);
  definition.merges = read_json_merges(path, model.at("merges"), ids);
  definition.ignore_merges = is_set(model, "ignore_merges");
  for (const Json* step : parts_of(path, find(json, "normalizer"), "normalizer", "normalizers")) {
    definition.normalizer.push_back(read_normalizer_step(path, *step));
  }
  const Json& pre_tokenizer = find(json, "pre_tokenizer");
  read_pre_tokenizer(path, pre_tokenizer, &definition);
  if (definition.byte_level) {
    check_unknown_token(path, model, ids);
    if (is_set(model, "byte_fallback")) refuse(path, "model.byte_fallback with ByteLevel", "false");
  } else if (find(find(json, "decoder"), "type") == "ByteLevel") {
    refuse(path,
           pre_tokenizer.is_null() ? "pre_tokenizer null" : "a pre_tokenizer without ByteLevel",
           "ByteLevel as the last one, as in the decoder");
  } else if (config.tokenizer_class == "LlamaTokenizer") {
    apply_llama_rules(config, &definition);
  } else {
    read_decoder(path, find(json, "decoder"), &definition);
    definition.byte_fallback = is_set(model, "byte_fallback");
    definition.fuse_unknown = is_set(model, "fuse_unk");
    if (is_set(model, "unk_token")) {
      const auto unknown = ids.find(model.at("unk_token").get<std::string>());
      if (unknown == ids.end())
        refuse(
            path, "model.unk_token " + shown(model.at("unk_token")), "a token of the vocabulary");
      definition.unknown = unknown->second;
    }
  }
  read_added_tokens(path, find(json, "added_tokens"), ids, &definition);
  definition.files = {path};
  apply_config(config, &definition);
  definition.begin_of_text =
      find_begin_of_text(path, find(json, "post_processor"), definition.vocabulary.size());
  return definition;
}

BpeDefinition parse(std::string_view text, const fs::path& path, const TokenizerConfig& config) {
  try {
    return read_definition(path, parse_json(text, path.string(), kVocabularyJsonLimits), config);
  } catch (const Json::exception& error) {
    throw DataError(concat(path.string(), ": not the JSON that was expected: ", error.what()));
  }
}

}  // namespace

BpeDefinition read_tokenizer_json(const fs::path& path) {
  return parse(read_file(path), path, read_tokenizer_config(path.parent_path()));
}

std::vector<AddedToken> read_added_tokens_of(const fs::path& path) {
  try {
    const Json json = read_json_file(path, kVocabularyJsonLimits);
    std::vector<AddedToken> tokens;
    for (const Json& entry : find(json, "added_tokens"))
      tokens.push_back(read_added_token(path, entry));
    return tokens;
  } catch (const Json::exception& error) {
    throw DataError(concat(path.string(), ": not the JSON that was expected: ", error.what()));
  }
}

BpeDefinition parse_tokenizer_json(std::string_view text, const fs::path& path) {
  return parse(text, path, {});
}

}  // namespace t2r::data
