// SmolLM3: Llama with layers that rotate nothing, by default every fourth. Source: transformers,
// modeling_smollm3.py.
#include <algorithm>

#include "model/families/family.h"
#include "model/families/llama_fields.h"

namespace t2r::model {
namespace {

constexpr const char* kLayers = "no_rope_layers";  ///< of each layer 1: RoPE, 0: none
constexpr const char* kInterval = "no_rope_layer_interval";
constexpr int64_t kDefaultInterval = 4;
constexpr double kRopeTheta = 2000000.0;
constexpr int64_t kMostLayers = 1 << 16;  ///< validate() has not seen their number yet

std::vector<int64_t> every_nth(int64_t interval, int64_t num_layers) {
  std::vector<int64_t> layers;
  for (int64_t layer = interval; layer <= std::min(num_layers, kMostLayers); layer += interval)
    layers.push_back(layer - 1);
  return layers;
}

std::vector<int64_t> read_layers_without_rope(const Fields& fields, int64_t num_layers) {
  if (!fields.has(kLayers)) {
    const int64_t interval = fields.get_or(kInterval, kDefaultInterval);
    if (interval < 1) fields.refuse(kInterval, "1 or more");
    return every_nth(interval, num_layers);
  }
  const auto uses_rope = fields.get<std::vector<int64_t>>(kLayers);
  if (std::ssize(uses_rope) < num_layers)
    fields.refuse(kLayers, concat("one for each of num_hidden_layers = ", num_layers));
  std::vector<int64_t> layers;
  for (int64_t layer = 0; layer < num_layers; ++layer) {
    if (uses_rope[static_cast<size_t>(layer)] == 0) layers.push_back(layer);
  }
  return layers;
}

void describe(DecoderConfig& config) {
  config.norm_eps = 1e-6;
  config.rope.theta = kRopeTheta;
  config.tied_embeddings = true;
  config.block.layers_without_rope = every_nth(kDefaultInterval, config.num_layers);
}

void read(const Fields& fields, DecoderConfig& config) {
  read_llama_fields(
      fields, {.num_kv_heads = 4, .max_positions = 32768, .rope_theta = kRopeTheta}, config);
  read_attention_bias(fields, config);
  config.block.mlp_bias = fields.get_or("mlp_bias", false);
  config.block.layers_without_rope = read_layers_without_rope(fields, config.num_layers);
}

void write(const DecoderConfig& config, Fields::Json& json) {
  write_llama_fields(config, json);
  json["attention_bias"] = config.block.qkv_bias;
  json["mlp_bias"] = config.block.mlp_bias;
  for (int64_t layer = 0; layer < config.num_layers; ++layer)
    json[kLayers].push_back(config.has_rope(layer) ? 1 : 0);
  json["pad_token_id"] = nullptr;  // left out it would be 128004, which a small vocabulary lacks
}

}  // namespace

const Family kSmolLM3{.model_type = "smollm3",
                      .architecture = "SmolLM3ForCausalLM",
                      .describe = describe,
                      .read = read,
                      .write = write,
                      .window = {.is_on = false, .layer_types_decide = true},
                      .own_options = {kLayers, kInterval}};

}  // namespace t2r::model
