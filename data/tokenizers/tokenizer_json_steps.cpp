#include "data/tokenizers/tokenizer_json_steps.h"

#include <utility>

#include "base/error.h"
#include "base/json.h"
#include "base/log.h"
#include "base/quoted_name.h"
#include "data/tokenizers/pre_tokenizer.h"
#include "data/tokenizers/tokenizer_json.h"

namespace t2r::data {

namespace fs = std::filesystem;
using Json = nlohmann::ordered_json;

[[noreturn]] void refuse(const fs::path& path,
                         const std::string& what,
                         const std::string& allowed) {
  throw UnsupportedTokenizer(
      concat(path.string(), ": ", what, " is not supported; allowed: ", allowed));
}

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

namespace {

constexpr const char* kSpace = "\u2581";

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

}  // namespace

std::vector<NormalizerStep> read_normalizer(const fs::path& path, const Json& json) {
  std::vector<NormalizerStep> steps;
  for (const Json* step : parts_of(path, json, "normalizer", "normalizers")) {
    steps.push_back(read_normalizer_step(path, *step));
  }
  return steps;
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

}  // namespace t2r::data
