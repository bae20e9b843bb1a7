#include "data/tokenizers/tokenizer_config.h"

#include <algorithm>
#include <charconv>
#include <set>

#include "base/error.h"
#include "base/json.h"
#include "base/quoted_name.h"

namespace t2r::data {
namespace {

namespace fs = std::filesystem;
using Json = nlohmann::ordered_json;

[[noreturn]] void refuse(const fs::path& file,
                         const std::string& what,
                         const std::string& allowed) {
  throw DataError(concat(file.string(), ": ", what, "; allowed: ", allowed));
}

/// The file's object; null if there is no such file.
Json read_object(const fs::path& file, std::vector<fs::path>* files) {
  if (!fs::exists(file)) return nullptr;
  Json json = read_json_file(file, kVocabularyJsonLimits);
  if (!json.is_object()) refuse(file, "not an object", "an object");
  files->push_back(file);
  return json;
}

std::optional<bool> find_flag(const fs::path& file, const Json& json, const char* key) {
  const auto entry = json.find(key);
  if (entry == json.end() || entry->is_null()) return std::nullopt;
  if (!entry->is_boolean())
    refuse(file, concat(key, " is ", entry->dump().substr(0, 80)), "true, false");
  return entry->get<bool>();
}

/// A token as transformers writes it: a string, or an object with its content.
std::optional<std::string> find_token(const fs::path& file, const Json& json, const char* key) {
  const auto entry = json.find(key);
  if (entry == json.end() || entry->is_null()) return std::nullopt;
  if (entry->is_string()) return entry->get<std::string>();
  if (entry->is_object() && entry->contains("content") && entry->at("content").is_string()) {
    return entry->at("content").get<std::string>();
  }
  refuse(
      file,
      concat(key, " is ", quoted_name(entry->dump(-1, ' ', true, Json::error_handler_t::replace))),
      "a token, or an object with its content");
}

int64_t check_id(const fs::path& file, const std::string& token, const Json& id) {
  if (!id.is_number_integer() || id < 0 || id > kMaxTokenId) {
    refuse(file,
           concat("token ", quoted_name(token), " has id ", id.dump().substr(0, 80)),
           concat("0 to ", kMaxTokenId));
  }
  return id.get<int64_t>();
}

AddedToken read_listed_token(const fs::path& file, const std::string& key, const Json& json) {
  int64_t id = -1;
  const auto [end, error] = std::from_chars(key.data(), key.data() + key.size(), id);
  if (error != std::errc() || end != key.data() + key.size()) {
    refuse(file, "added_tokens_decoder has key " + quoted_name(key), "token ids");
  }
  const auto content =
      json.is_object() ? find_token(file, {{"token", json}}, "token") : std::nullopt;
  if (!content || content->empty()) {
    refuse(file, "added_tokens_decoder has no content for id " + key, "an object with content");
  }
  check_id(file, *content, id);
  return {.content = *content,
          .id = static_cast<int32_t>(id),
          .normalized = find_flag(file, json, "normalized")
                            .value_or(!find_flag(file, json, "special").value_or(false)),
          .strips_left = find_flag(file, json, "lstrip").value_or(false),
          .strips_right = find_flag(file, json, "rstrip").value_or(false),
          .single_word = find_flag(file, json, "single_word").value_or(false),
          .special = find_flag(file, json, "special").value_or(false)};
}

void read_names(const fs::path& file, const Json& json, TokenizerConfig* config) {
  const auto take = [&](const char* key, std::optional<std::string>* token) {
    if (auto found = find_token(file, json, key)) {
      config->special.insert(*found);
      if (token != nullptr) *token = std::move(found);
    }
  };
  take("bos_token", &config->begin_of_text);
  take("eos_token", &config->end_of_text);
  take("unk_token", &config->unknown);
  for (const char* key : {"pad_token", "sep_token", "cls_token", "mask_token"}) take(key, nullptr);
  for (const char* key : {"additional_special_tokens", "extra_special_tokens"}) {
    const auto list = json.find(key);
    if (list == json.end() || !list->is_array()) continue;
    for (const Json& token : *list) {
      if (auto found = find_token(file, {{key, token}}, key)) config->special.insert(*found);
    }
  }
}

void sort_and_check(const fs::path& file, std::vector<AddedToken>* tokens) {
  std::ranges::sort(*tokens, {}, &AddedToken::id);
  std::set<std::string_view> contents;
  for (size_t i = 0; i < tokens->size(); ++i) {
    const AddedToken& token = (*tokens)[i];
    if ((i > 0 && (*tokens)[i - 1].id == token.id) || !contents.insert(token.content).second) {
      refuse(file,
             concat("added token ", quoted_name(token.content), " with id ", token.id),
             "each token and each id once");
    }
  }
}

}  // namespace

TokenizerConfig read_tokenizer_config(const fs::path& folder) {
  TokenizerConfig config;
  const fs::path file = folder / "tokenizer_config.json";
  const Json json = read_object(file, &config.files);
  const bool lists_tokens = json.is_object() && json.contains("added_tokens_decoder") &&
                            json.at("added_tokens_decoder").is_object();
  if (json.is_object()) {
    if (const auto name = json.find("tokenizer_class"); name != json.end() && name->is_string()) {
      config.tokenizer_class = name->get<std::string>();
      if (config.tokenizer_class.ends_with("Fast"))
        config.tokenizer_class.resize(config.tokenizer_class.size() - 4);
    }
    config.adds_begin_of_text = find_flag(file, json, "add_bos_token");
    config.adds_prefix_space = find_flag(file, json, "add_prefix_space");
    config.legacy = find_flag(file, json, "legacy");
    read_names(file, json, &config);
  }
  if (lists_tokens) {
    for (const auto& [key, token] : json.at("added_tokens_decoder").items()) {
      config.added_tokens.push_back(read_listed_token(file, key, token));
    }
    sort_and_check(file, &config.added_tokens);
  } else {
    const fs::path map = folder / "special_tokens_map.json";
    if (const Json names = read_object(map, &config.files); names.is_object()) {
      read_names(map, names, &config);
    }
    const fs::path added = folder / "added_tokens.json";
    if (const Json tokens = read_object(added, &config.files); tokens.is_object()) {
      for (const auto& [token, id] : tokens.items()) {
        if (token.empty()) refuse(added, "an empty token", "tokens of one character or more");
        config.added_tokens.push_back({.content = token,
                                       .id = static_cast<int32_t>(check_id(added, token, id)),
                                       .normalized = !config.special.contains(token)});
      }
      sort_and_check(added, &config.added_tokens);
    }
  }
  return config;
}

}  // namespace t2r::data
