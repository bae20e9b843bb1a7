#include "model/families/config_fields.h"
#include "model/families/families.h"
#include "model/families/family.h"
#include "model/files/config_json.h"

namespace t2r::model {
namespace {

using Json = Fields::Json;

const Family& family(const DecoderConfig& config) {
  return family_of(config.family, "family");
}

/// The name of a type in a config.json.
const char* torch_name(DType dtype) {
  switch (dtype) {
    case DType::f32:
      return "float32";
    case DType::bf16:
      return "bfloat16";
    case DType::f16:
      return "float16";
    case DType::f64:
      return "float64";
    default:
      throw ContractError("write_config: weights are floating-point numbers");
  }
}

Json own_config(const DecoderConfig& config) {
  Json json;
  json["architectures"] = Json::array({family(config).architecture});
  json["model_type"] = family(config).model_type;
  json["dtype"] = torch_name(DType::f32);
  json["vocab_size"] = config.vocab_size;
  family(config).write(config, json);
  json["initializer_range"] = config.initializer_range;
  json["tie_word_embeddings"] = config.tied_embeddings;
  if (config.bos_token_id >= 0) json["bos_token_id"] = config.bos_token_id;
  if (config.eos_token_ids.size() == 1) {
    json["eos_token_id"] = config.eos_token_ids.front();
  } else if (!config.eos_token_ids.empty()) {
    json["eos_token_id"] = config.eos_token_ids;
  }
  return json;
}

bool says_tied(const Json& json, const std::string& family) {
  const auto found = json.find("tie_word_embeddings");
  const bool is_said = found != json.end() && found->is_boolean();
  return is_said ? found->get<bool>() : config_of(family).tied_embeddings;
}

/// Another framework takes a model for what model_type says: a converted one must not pass for its
/// softmax original.
void set_kind(const DecoderConfig& config, Json& json) {
  const bool was_converted = json.value("model_type", "") == kT2rModelType;
  if (!config.linear.has_value()) {
    json.erase("t2r");
    if (!was_converted) return;
    json["model_type"] = family(config).model_type;
    json["architectures"] = Json::array({family(config).architecture});
    return;
  }
  json["model_type"] = kT2rModelType;
  json["architectures"] = Json::array({kT2rArchitecture});
  // Code of the original's folder, which would make of it what it was.
  if (!was_converted) json.erase("auto_map");
  json["t2r"] = {{"base_model_type", family(config).model_type},
                 {"feature_map", config.linear->feature_map},
                 {"feature_size", config.linear->feature_size},
                 {"denominator_floor", config.linear->denominator_floor},
                 {"map_per_query_head", config.linear->map_per_query_head},
                 {"softmax_layers", config.linear->softmax_layers}};
}

/// transformers 5 writes "dtype" and older ones "torch_dtype"; both read both.
void set_dtype(DType dtype, Json& json) {
  const bool has_old_name = json.contains("torch_dtype");
  if (has_old_name) json["torch_dtype"] = torch_name(dtype);
  if (!has_old_name || json.contains("dtype")) json["dtype"] = torch_name(dtype);
}

}  // namespace

std::string write_config(const DecoderConfig& config,
                         const std::string& base_json,
                         std::optional<DType> dtype) {
  Json json;
  if (base_json.empty()) {
    json = own_config(config);
  } else {
    json = parse_json_object(base_json, kConfigFile);
    if (says_tied(json, config.family) != config.tied_embeddings)
      json["tie_word_embeddings"] = config.tied_embeddings;
  }
  set_kind(config, json);
  if (dtype.has_value()) set_dtype(*dtype, json);
  return json.dump(2) + "\n";
}

}  // namespace t2r::model
