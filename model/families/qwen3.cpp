// Qwen3: Llama with a norm of each head's queries and keys, and heads whose width does not follow
// from the model's. Source: transformers, modeling_qwen3.py.
#include "model/families/family.h"
#include "model/families/llama_fields.h"

namespace t2r::model {
namespace {

void describe(DecoderConfig& config) {
  config.norm_eps = 1e-6;
  config.block.qk_norm = QkNorm::kPerHead;
}

void read(const Fields& fields, DecoderConfig& config) {
  read_llama_fields(fields, {.num_kv_heads = 32, .head_dim = 128, .max_positions = 32768}, config);
  read_attention_bias(fields, config);
}

void write(const DecoderConfig& config, Fields::Json& json) {
  write_llama_fields(config, json);
  json["attention_bias"] = config.block.qkv_bias;
}

}  // namespace

const Family kQwen3{.model_type = "qwen3",
                    .architecture = "Qwen3ForCausalLM",
                    .describe = describe,
                    .read = read,
                    .write = write,
                    .window = {.is_on = false,
                               .otherwise = 4096,
                               .has_first_layer = true,
                               .first_layer = 28,
                               .layer_types_decide = true}};

}  // namespace t2r::model
