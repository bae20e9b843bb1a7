// GPT-2: LayerNorm, learned positions, fused projections with biases and input-major weights.
// Source: transformers, modeling_gpt2.py.
#include <algorithm>

#include "model/families/activation_names.h"
#include "model/families/family.h"

namespace t2r::model {
namespace {

/// A size under GPT-2's own name or under the one that it shares with other models.
int64_t size_of(const Fields& fields, const std::string& name, const char* synonym) {
  if (!fields.has(synonym)) return fields.get<int64_t>(name.c_str());
  const auto value = fields.get<int64_t>(synonym);
  if (fields.has(name.c_str()) && fields.get<int64_t>(name.c_str()) != value)
    fields.refuse(name.c_str(), concat(value, ", as ", synonym, " beside it says"));
  return value;
}

void describe(DecoderConfig& config) {
  config.block = {.norm = NormKind::kLayer,
                  .positions = Positions::kLearned,
                  .has_gated_mlp = false,
                  .activation = Activation::kGeluTanh,
                  .qkv_bias = true,
                  .output_bias = true,
                  .mlp_bias = true,
                  .has_input_major_weights = true,
                  .has_free_heads = false};
  config.names = {.model = "transformer.",
                  .token_embedding = "wte",
                  .position_embedding = "wpe",
                  .blocks = "h",
                  .final_norm = "ln_f",
                  .attention_norm = "ln_1",
                  .attention = "attn.",
                  .qkv = {"c_attn"},
                  .output = "c_proj",
                  .mlp_norm = "ln_2",
                  .up = {"c_fc"},
                  .down = "c_proj"};
  config.fields = {.hidden_size = "n_embd",
                   .num_layers = "n_layer",
                   .num_heads = "n_head",
                   .intermediate_size = "n_inner",
                   .max_positions = "n_positions",
                   .norm_eps = "layer_norm_epsilon"};
  config.tied_embeddings = true;
}

void read(const Fields& fields, DecoderConfig& config) {
  const FieldNames& names = config.fields;
  config.hidden_size = size_of(fields, names.hidden_size, "hidden_size");
  config.num_layers = size_of(fields, names.num_layers, "num_hidden_layers");
  config.num_heads = size_of(fields, names.num_heads, "num_attention_heads");
  config.num_kv_heads = config.num_heads;
  if (config.num_heads < 1 || config.hidden_size % config.num_heads != 0)
    fields.refuse("n_embd",
                  std::to_string(config.hidden_size),
                  concat("a multiple of n_head = ", config.num_heads));
  config.head_dim = config.hidden_size / config.num_heads;
  config.max_positions = size_of(fields, names.max_positions, "max_position_embeddings");
  config.block.activation = parse_activation(
      fields.get_or<std::string>("activation_function", "gelu_new"), fields.file());
  config.norm_eps = fields.positive_or("layer_norm_epsilon", 1e-5);
  config.block.scale_attention = fields.get_or("scale_attn_weights", true);
  config.block.scale_by_inverse_layer = fields.get_or("scale_attn_by_inverse_layer_idx", false);
  // Absent: four times the width, which may be any number until validate() has seen it.
  constexpr int64_t kMaxFactor = int64_t{1} << 60;
  config.intermediate_size =
      fields.get_or("n_inner", 4 * std::clamp(config.hidden_size, -kMaxFactor, kMaxFactor));
}

void write(const DecoderConfig& config, Fields::Json& json) {
  json["n_embd"] = config.hidden_size;
  json["n_layer"] = config.num_layers;
  json["n_head"] = config.num_heads;
  json["n_inner"] = config.intermediate_size;
  json["n_positions"] = config.max_positions;
  json["activation_function"] = activation_name(config.block.activation);
  json["layer_norm_epsilon"] = config.norm_eps;
  json["scale_attn_weights"] = config.block.scale_attention;
  json["scale_attn_by_inverse_layer_idx"] = config.block.scale_by_inverse_layer;
}

}  // namespace

const Family kGpt2{.model_type = "gpt2",
                   .architecture = "GPT2LMHeadModel",
                   .describe = describe,
                   .read = read,
                   .write = write};

}  // namespace t2r::model
