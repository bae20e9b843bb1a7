#include "model/families/llama_fields.h"

#include "model/families/activation_names.h"
#include "model/families/rope_fields.h"

namespace t2r::model {

void read_llama_fields(const Fields& fields, const LlamaDefaults& defaults, DecoderConfig& config) {
  config.hidden_size = fields.get<int64_t>("hidden_size");
  config.num_layers = fields.get<int64_t>("num_hidden_layers");
  config.num_heads = fields.get<int64_t>("num_attention_heads");
  if (config.num_heads < 1)
    fields.refuse("num_attention_heads", std::to_string(config.num_heads), "1 or more");
  // transformers: null is as many as heads, and absent what the class says.
  const bool says_kv_heads = fields.json().contains("num_key_value_heads");
  config.num_kv_heads = fields.get_or(
      "num_key_value_heads",
      says_kv_heads || defaults.num_kv_heads == 0 ? config.num_heads : defaults.num_kv_heads);
  const bool has_head_dim = fields.has("head_dim") || defaults.head_dim > 0;
  if (!has_head_dim && config.hidden_size % config.num_heads != 0)
    fields.refuse(
        "hidden_size",
        std::to_string(config.hidden_size),
        concat("a multiple of num_attention_heads = ", config.num_heads, " without head_dim"));
  config.head_dim = fields.get_or(
      "head_dim",
      defaults.head_dim > 0 ? defaults.head_dim : config.hidden_size / config.num_heads);
  config.intermediate_size = fields.get<int64_t>("intermediate_size");
  config.max_positions = fields.get_or("max_position_embeddings", defaults.max_positions);
  config.block.activation =
      parse_activation(fields.get_or<std::string>("hidden_act", "silu"), fields.file());
  config.norm_eps = fields.positive_or("rms_norm_eps", defaults.norm_eps);
  config.rope = read_rope(fields, defaults.rope_theta, config.max_positions);
}

void read_attention_bias(const Fields& fields, DecoderConfig& config) {
  config.block.qkv_bias = config.block.output_bias = fields.get_or("attention_bias", false);
}

void write_llama_fields(const DecoderConfig& config, Fields::Json& json) {
  json["hidden_size"] = config.hidden_size;
  json["num_hidden_layers"] = config.num_layers;
  json["num_attention_heads"] = config.num_heads;
  json["num_key_value_heads"] = config.num_kv_heads;
  json["head_dim"] = config.head_dim;
  json["intermediate_size"] = config.intermediate_size;
  json["max_position_embeddings"] = config.max_positions;
  json["hidden_act"] = activation_name(config.block.activation);
  json["rms_norm_eps"] = config.norm_eps;
  write_rope(config.rope, json);
}

}  // namespace t2r::model
