#include "data/tokenizers/tokenizer_json.h"

#include <algorithm>
#include <unordered_set>
#include <utility>

#include "base/durable_file.h"
#include "base/error.h"
#include "base/json.h"
#include "base/quoted_name.h"
#include "data/tokenizers/bpe_files.h"
#include "data/tokenizers/llama_tokenizer.h"
#include "data/tokenizers/tokenizer_json_steps.h"
#include "data/unicode/utf8.h"

namespace t2r::data {
namespace {

namespace fs = std::filesystem;
using Json = nlohmann::ordered_json;

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
  definition.normalizer = read_normalizer(path, find(json, "normalizer"));
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
