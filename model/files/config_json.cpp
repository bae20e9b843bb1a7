#include "model/files/config_json.h"

#include <algorithm>

#include "base/quoted_name.h"
#include "model/files/activation_names.h"
#include "model/files/config_fields.h"
#include "model/files/unsupported_options.h"

namespace t2r::model {
namespace {

using Json = Fields::Json;

constexpr double kDefaultRopeTheta = 10000.0;
constexpr int64_t kDefaultMaxPositions = 2048;

[[noreturn]] void refuse(const Fields& fields,
                         const char* name,
                         const std::string& found,
                         const std::string& allowed) {
  throw ConfigError(concat(fields.file(), ": ", name, " = ", found, ", allowed: ", allowed));
}

double positive(const Fields& fields, const char* name, double otherwise) {
  const double value = fields.get_or(name, otherwise);
  if (!(value > 0.0)) refuse(fields, name, value_text(fields.json().at(name)), "above 0");
  return value;
}

/// The section that says how positions rotate, chosen as transformers 5 does: rope_scaling unless
/// it is empty, else rope_parameters; nullptr if there is neither.
const char* rope_section(const Fields& fields) {
  const auto is_there = [&](const char* name) {
    return fields.has(name) && !fields.section(name).json().empty();
  };
  if (is_there("rope_scaling")) return "rope_scaling";
  return is_there("rope_parameters") ? "rope_parameters" : nullptr;
}

/// transformers 5 takes no base from a rope_parameters beside rope_scaling, but 10,000: refused
/// where that is another one, as nobody can have meant it.
void check_base_beside_scaling(const Fields& fields, const Fields& scaling) {
  if (scaling.has("rope_theta") || fields.has("rope_theta") || !fields.has("rope_parameters"))
    return;
  const Fields parameters = fields.section("rope_parameters");
  const double theta = parameters.get_or("rope_theta", kDefaultRopeTheta);
  if (theta != kDefaultRopeTheta)
    refuse(fields,
           "rope_scaling",
           concat(value_text(scaling.json()), " beside rope_parameters"),
           concat("one of the two, or rope_scaling with a rope_theta of its own (rope_parameters: ",
                  theta,
                  ")"));
}

RopeConfig parse_rope(const Fields& fields, int64_t max_positions) {
  RopeConfig rope;
  rope.theta = positive(fields, "rope_theta", kDefaultRopeTheta);
  const char* section = rope_section(fields);
  if (section == nullptr) return rope;
  const Fields inner = fields.section(section);
  for (const auto& [name, value] : inner.json().items()) {
    if (value.is_object())
      refuse(inner, quoted_name(name).c_str(), value_text(value), "one rotation for all layers");
  }
  check_base_beside_scaling(fields, inner);
  if (inner.has("rope_theta")) rope.theta = positive(inner, "rope_theta", rope.theta);
  rope.type = inner.get_or<std::string>("rope_type", inner.get_or<std::string>("type", "default"));
  if (rope.type != "default" && rope.type != "linear" && rope.type != "llama3")
    refuse(inner, "rope_type", quoted_name(rope.type), "default, linear, llama3");
  if (inner.get_or("partial_rotary_factor", 1.0) != 1.0)
    refuse(
        inner, "partial_rotary_factor", value_text(inner.json().at("partial_rotary_factor")), "1");
  if (rope.type == "default") return rope;
  inner.get<double>("factor");
  rope.factor = positive(inner, "factor", 1.0);
  if (rope.type != "llama3") return rope;
  inner.get<double>("low_freq_factor");
  rope.low_freq_factor = positive(inner, "low_freq_factor", 1.0);
  rope.high_freq_factor = inner.get<double>("high_freq_factor");
  if (!(rope.high_freq_factor > rope.low_freq_factor))
    refuse(inner,
           "high_freq_factor",
           value_text(inner.json().at("high_freq_factor")),
           concat("above low_freq_factor = ", rope.low_freq_factor));
  constexpr const char* kOriginal = "original_max_position_embeddings";
  rope.original_max_positions = fields.get_or(kOriginal, inner.get_or(kOriginal, max_positions));
  if (rope.original_max_positions < 1)
    refuse(inner, kOriginal, std::to_string(rope.original_max_positions), "1 or more");
  return rope;
}

/// A size under GPT-2's own name or under the one that it shares with other models.
int64_t gpt2_size(const Fields& fields, const char* name, const char* synonym) {
  if (!fields.has(synonym)) return fields.get<int64_t>(name);
  const auto value = fields.get<int64_t>(synonym);
  if (fields.has(name) && fields.get<int64_t>(name) != value)
    refuse(fields,
           name,
           value_text(fields.json().at(name)),
           concat(value, ", as ", synonym, " beside it says"));
  return value;
}

void parse_gpt2(const Fields& fields, DecoderConfig& config) {
  config.family = Family::kGpt2;
  config.hidden_size = gpt2_size(fields, "n_embd", "hidden_size");
  config.num_layers = gpt2_size(fields, "n_layer", "num_hidden_layers");
  config.num_heads = gpt2_size(fields, "n_head", "num_attention_heads");
  config.num_kv_heads = config.num_heads;
  if (config.num_heads < 1 || config.hidden_size % config.num_heads != 0) {
    refuse(fields,
           "n_embd",
           std::to_string(config.hidden_size),
           concat("a multiple of n_head = ", config.num_heads));
  }
  config.head_dim = config.hidden_size / config.num_heads;
  config.max_positions = gpt2_size(fields, "n_positions", "max_position_embeddings");
  config.activation = parse_activation(
      fields.get_or<std::string>("activation_function", "gelu_new"), fields.file());
  config.norm_eps = positive(fields, "layer_norm_epsilon", 1e-5);
  config.tied_embeddings = fields.get_or("tie_word_embeddings", true);
  config.attention_bias = true;
  config.mlp_bias = true;
  config.scale_attention = fields.get_or("scale_attn_weights", true);
  config.scale_by_inverse_layer = fields.get_or("scale_attn_by_inverse_layer_idx", false);
  // Absent: four times the width, which may be any number until validate() has seen it.
  constexpr int64_t kMaxFactor = int64_t{1} << 60;
  config.intermediate_size =
      fields.get_or("n_inner", 4 * std::clamp(config.hidden_size, -kMaxFactor, kMaxFactor));
}

void parse_llama(const Fields& fields, DecoderConfig& config) {
  config.family = Family::kLlama;
  config.hidden_size = fields.get<int64_t>("hidden_size");
  config.num_layers = fields.get<int64_t>("num_hidden_layers");
  config.num_heads = fields.get<int64_t>("num_attention_heads");
  config.num_kv_heads = fields.get_or("num_key_value_heads", config.num_heads);
  if (config.num_heads < 1)
    refuse(fields, "num_attention_heads", std::to_string(config.num_heads), "1 or more");
  if (!fields.has("head_dim") && config.hidden_size % config.num_heads != 0) {
    refuse(fields,
           "hidden_size",
           std::to_string(config.hidden_size),
           concat("a multiple of num_attention_heads = ", config.num_heads, " without head_dim"));
  }
  config.head_dim = fields.get_or("head_dim", config.hidden_size / config.num_heads);
  config.intermediate_size = fields.get<int64_t>("intermediate_size");
  config.max_positions = fields.get_or("max_position_embeddings", kDefaultMaxPositions);
  config.activation =
      parse_activation(fields.get_or<std::string>("hidden_act", "silu"), fields.file());
  config.norm_eps = positive(fields, "rms_norm_eps", 1e-6);
  config.rope = parse_rope(fields, config.max_positions);
  config.tied_embeddings = fields.get_or("tie_word_embeddings", false);
  config.attention_bias = fields.get_or("attention_bias", false);
  config.mlp_bias = fields.get_or("mlp_bias", false);
}

LinearAttentionConfig parse_linear(const Fields& fields) {
  LinearAttentionConfig linear;
  linear.feature_map = fields.get<std::string>("feature_map");
  linear.feature_size = fields.get<int64_t>("feature_size");
  linear.denominator_floor = fields.get_or("denominator_floor", linear.denominator_floor);
  linear.map_per_query_head = fields.get_or("map_per_query_head", false);
  linear.softmax_layers = fields.get_or("softmax_layers", std::vector<int64_t>{});
  std::ranges::sort(linear.softmax_layers);
  return linear;
}

/// model_type, and of a converted model that of the family it had.
std::string family_name(const Fields& fields) {
  const auto type = fields.get<std::string>("model_type");
  std::string family = type;
  if (fields.has("t2r") || type == kT2rModelType) {
    const Fields section = fields.section("t2r");
    // Converted models of before keep the family's own name in model_type.
    family = type == kT2rModelType ? section.get<std::string>("base_model_type")
                                   : section.get_or("base_model_type", type);
    if (type != kT2rModelType && type != family)
      refuse(section, "base_model_type", quoted_name(family), quoted_name(type));
  }
  if (family != "gpt2" && family != "llama")
    refuse(fields,
           type == kT2rModelType ? "t2r: base_model_type" : "model_type",
           quoted_name(family),
           "gpt2, llama");
  return family;
}

}  // namespace

DecoderConfig parse_config(const std::string& json_text, const std::string& file) {
  const Json json = parse_json_object(json_text, file);
  const Fields fields(json, file);
  const std::string family = family_name(fields);
  refuse_unsupported_options(fields);
  DecoderConfig config;
  if (family == "gpt2") {
    parse_gpt2(fields, config);
  } else {
    parse_llama(fields, config);
  }
  config.vocab_size = fields.get<int64_t>("vocab_size");
  config.initializer_range = fields.get_or("initializer_range", 0.02);
  config.bos_token_id = std::max<int64_t>(fields.get_or<int64_t>("bos_token_id", -1), -1);
  config.eos_token_ids = fields.integers("eos_token_id");
  if (fields.has("t2r")) config.linear = parse_linear(fields.section("t2r"));
  try {
    config.validate();
  } catch (const ConfigError& error) {
    throw ConfigError(concat(file, ": ", error.what()));
  }
  return config;
}

}  // namespace t2r::model
