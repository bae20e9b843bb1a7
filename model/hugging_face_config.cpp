#include <nlohmann/json.hpp>

#include "base/error.h"
#include "model/hugging_face.h"

namespace t2r::model {
namespace {

using Json = nlohmann::ordered_json;

/// Typed access to the fields of a config, with errors that name file, field and type.
class Fields {
 public:
  Fields(const Json& json, std::string file) : json_(json), file_(std::move(file)) {}

  bool has(const char* name) const { return json_.contains(name) && !json_.at(name).is_null(); }

  template <class T>
  T get(const char* name) const {
    if (!has(name)) throw DataError(concat(file_, ": field \"", name, "\" is missing"));
    return get_or<T>(name, T{});
  }

  template <class T>
  T get_or(const char* name, T otherwise) const {
    if (!has(name)) return otherwise;
    try {
      return json_.at(name).get<T>();
    } catch (const Json::exception&) {
      throw DataError(
          concat(file_, ": field \"", name, "\" has the wrong type: ", json_.at(name).dump()));
    }
  }

  /// Refuses a field whose value asks for something that is not built.
  template <class T>
  void only(const char* name, T allowed) const {
    if (has(name) && get<T>(name) != allowed) {
      throw ConfigError(concat(
          file_, ": ", name, " = ", json_.at(name).dump(), ", allowed: ", Json(allowed).dump()));
    }
  }

  const Json& json() const { return json_; }
  const std::string& file() const { return file_; }

 private:
  const Json& json_;
  std::string file_;
};

struct ActivationName {
  const char* name;
  Activation activation;
};

// The first name of an activation is the one that is written.
constexpr ActivationName kActivations[] = {{"gelu_new", Activation::kGeluTanh},
                                           {"gelu_pytorch_tanh", Activation::kGeluTanh},
                                           {"gelu_fast", Activation::kGeluTanh},
                                           {"gelu", Activation::kGeluErf},
                                           {"relu", Activation::kRelu},
                                           {"silu", Activation::kSilu},
                                           {"swish", Activation::kSilu}};

Activation parse_activation(const std::string& name, const std::string& file) {
  std::string known;
  for (const ActivationName& entry : kActivations) {
    if (name == entry.name) return entry.activation;
    known += concat(known.empty() ? "" : ", ", entry.name);
  }
  throw ConfigError(concat(file, ": activation \"", name, "\", allowed: ", known));
}

const char* activation_name(Activation activation) {
  for (const ActivationName& entry : kActivations) {
    if (entry.activation == activation) return entry.name;
  }
  throw ContractError("activation out of range");
}

RopeConfig parse_rope(const Fields& fields) {
  RopeConfig rope;
  rope.theta = fields.get_or("rope_theta", 10000.0);
  const char* section = fields.has("rope_parameters") ? "rope_parameters" : "rope_scaling";
  if (!fields.has(section)) return rope;
  const Fields inner(fields.json().at(section), concat(fields.file(), ": ", section));
  rope.theta = inner.get_or("rope_theta", rope.theta);
  rope.type = inner.get_or<std::string>("rope_type", inner.get_or<std::string>("type", "default"));
  if (rope.type != "default" && rope.type != "linear" && rope.type != "llama3") {
    throw ConfigError(concat(
        fields.file(), ": rope_type = \"", rope.type, "\", allowed: default, linear, llama3"));
  }
  inner.only("partial_rotary_factor", 1.0);
  if (rope.type != "default") rope.factor = inner.get<double>("factor");
  if (rope.type == "llama3") {
    rope.low_freq_factor = inner.get<double>("low_freq_factor");
    rope.high_freq_factor = inner.get<double>("high_freq_factor");
    rope.original_max_positions = inner.get<int64_t>("original_max_position_embeddings");
  }
  return rope;
}

void parse_gpt2(const Fields& fields, DecoderConfig& config) {
  fields.only("add_cross_attention", false);
  config.family = Family::kGpt2;
  config.hidden_size = fields.get<int64_t>("n_embd");
  config.num_layers = fields.get<int64_t>("n_layer");
  config.num_heads = fields.get<int64_t>("n_head");
  config.num_kv_heads = config.num_heads;
  if (config.num_heads < 1 || config.hidden_size % config.num_heads != 0) {
    throw ConfigError(concat(fields.file(),
                             ": n_embd = ",
                             config.hidden_size,
                             ", allowed: a multiple of n_head = ",
                             config.num_heads));
  }
  config.head_dim = config.hidden_size / config.num_heads;
  config.intermediate_size = fields.get_or<int64_t>("n_inner", 4 * config.hidden_size);
  config.max_positions = fields.get<int64_t>("n_positions");
  config.activation = parse_activation(
      fields.get_or<std::string>("activation_function", "gelu_new"), fields.file());
  config.norm_eps = fields.get_or("layer_norm_epsilon", 1e-5);
  config.tied_embeddings = fields.get_or("tie_word_embeddings", true);
  config.attention_bias = true;
  config.mlp_bias = true;
  config.scale_attention = fields.get_or("scale_attn_weights", true);
  config.scale_by_inverse_layer = fields.get_or("scale_attn_by_inverse_layer_idx", false);
}

void parse_llama(const Fields& fields, DecoderConfig& config) {
  config.family = Family::kLlama;
  config.hidden_size = fields.get<int64_t>("hidden_size");
  config.num_layers = fields.get<int64_t>("num_hidden_layers");
  config.num_heads = fields.get<int64_t>("num_attention_heads");
  config.num_kv_heads = fields.get_or("num_key_value_heads", config.num_heads);
  if (config.num_heads < 1)
    throw ConfigError(concat(fields.file(), ": num_attention_heads must be 1 or more"));
  config.head_dim = fields.get_or("head_dim", config.hidden_size / config.num_heads);
  config.intermediate_size = fields.get<int64_t>("intermediate_size");
  config.max_positions = fields.get_or<int64_t>("max_position_embeddings", 2048);
  config.activation =
      parse_activation(fields.get_or<std::string>("hidden_act", "silu"), fields.file());
  config.norm_eps = fields.get_or("rms_norm_eps", 1e-6);
  config.rope = parse_rope(fields);
  config.tied_embeddings = fields.get_or("tie_word_embeddings", false);
  config.attention_bias = fields.get_or("attention_bias", false);
  config.mlp_bias = fields.get_or("mlp_bias", false);
}

void parse_special_tokens(const Fields& fields, DecoderConfig& config) {
  config.bos_token_id = fields.get_or<int64_t>("bos_token_id", -1);
  if (!fields.has("eos_token_id")) return;
  config.eos_token_ids = fields.json().at("eos_token_id").is_array()
                             ? fields.get<std::vector<int64_t>>("eos_token_id")
                             : std::vector<int64_t>{fields.get<int64_t>("eos_token_id")};
}

LinearAttentionConfig parse_linear(const Json& json, const std::string& file) {
  const Fields fields(json, file + ": t2r");
  LinearAttentionConfig linear;
  linear.feature_map = fields.get<std::string>("feature_map");
  linear.feature_size = fields.get<int64_t>("feature_size");
  linear.denominator_floor = fields.get_or("denominator_floor", linear.denominator_floor);
  linear.map_per_query_head = fields.get_or("map_per_query_head", false);
  linear.softmax_layers = fields.get_or("softmax_layers", std::vector<int64_t>{});
  return linear;
}

void write_gpt2(const DecoderConfig& config, Json& json) {
  json["n_embd"] = config.hidden_size;
  json["n_layer"] = config.num_layers;
  json["n_head"] = config.num_heads;
  json["n_inner"] = config.intermediate_size;
  json["n_positions"] = config.max_positions;
  json["activation_function"] = activation_name(config.activation);
  json["layer_norm_epsilon"] = config.norm_eps;
  json["scale_attn_weights"] = config.scale_attention;
  json["scale_attn_by_inverse_layer_idx"] = config.scale_by_inverse_layer;
}

void write_llama(const DecoderConfig& config, Json& json) {
  json["hidden_size"] = config.hidden_size;
  json["num_hidden_layers"] = config.num_layers;
  json["num_attention_heads"] = config.num_heads;
  json["num_key_value_heads"] = config.num_kv_heads;
  json["head_dim"] = config.head_dim;
  json["intermediate_size"] = config.intermediate_size;
  json["max_position_embeddings"] = config.max_positions;
  json["hidden_act"] = activation_name(config.activation);
  json["rms_norm_eps"] = config.norm_eps;
  json["rope_theta"] = config.rope.theta;
  json["attention_bias"] = config.attention_bias;
  json["mlp_bias"] = config.mlp_bias;
}

Json new_config(const DecoderConfig& config) {
  Json json;
  const bool is_gpt2 = config.family == Family::kGpt2;
  json["architectures"] = {is_gpt2 ? "GPT2LMHeadModel" : "LlamaForCausalLM"};
  json["model_type"] = is_gpt2 ? "gpt2" : "llama";
  json["dtype"] = "float32";
  json["vocab_size"] = config.vocab_size;
  if (is_gpt2) {
    write_gpt2(config, json);
  } else {
    write_llama(config, json);
  }
  json["initializer_range"] = config.initializer_range;
  json["tie_word_embeddings"] = config.tied_embeddings;
  if (config.bos_token_id >= 0) json["bos_token_id"] = config.bos_token_id;
  if (!config.eos_token_ids.empty()) json["eos_token_id"] = config.eos_token_ids.front();
  return json;
}

Json parse_object(const std::string& text, const std::string& file) {
  const Json json = Json::parse(text, nullptr, /*allow_exceptions=*/false);
  if (!json.is_object()) throw DataError(concat(file, ": not a JSON object"));
  return json;
}

}  // namespace

DecoderConfig parse_config(const std::string& json_text, const std::string& file) {
  const Json json = parse_object(json_text, file);
  const Fields fields(json, file);
  DecoderConfig config;
  const auto type = fields.get<std::string>("model_type");
  if (type == "gpt2") {
    parse_gpt2(fields, config);
  } else if (type == "llama") {
    parse_llama(fields, config);
  } else {
    throw ConfigError(concat(file, ": model_type = \"", type, "\", allowed: gpt2, llama"));
  }
  config.vocab_size = fields.get<int64_t>("vocab_size");
  config.initializer_range = fields.get_or("initializer_range", 0.02);
  parse_special_tokens(fields, config);
  if (fields.has("t2r")) config.linear = parse_linear(json.at("t2r"), file);
  config.validate();
  return config;
}

std::string write_config(const DecoderConfig& config, const std::string& base_json) {
  Json json = base_json.empty() ? new_config(config) : parse_object(base_json, "config.json");
  json.erase("t2r");
  if (config.linear.has_value()) {
    json["t2r"] = {{"feature_map", config.linear->feature_map},
                   {"feature_size", config.linear->feature_size},
                   {"denominator_floor", config.linear->denominator_floor},
                   {"map_per_query_head", config.linear->map_per_query_head},
                   {"softmax_layers", config.linear->softmax_layers}};
  }
  return json.dump(2) + "\n";
}

}  // namespace t2r::model
