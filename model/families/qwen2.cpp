// Qwen2: Llama with biases on queries, keys and values. Source: transformers, modeling_qwen2.py.
#include "model/families/family.h"
#include "model/families/llama_fields.h"

namespace t2r::model {
namespace {

void describe(DecoderConfig& config) {
  config.norm_eps = 1e-6;
  config.block.qkv_bias = true;
}

void read(const Fields& fields, DecoderConfig& config) {
  read_llama_fields(fields, {.num_kv_heads = 32, .max_positions = 32768}, config);
}

}  // namespace

const Family kQwen2{.model_type = "qwen2",
                    .architecture = "Qwen2ForCausalLM",
                    .describe = describe,
                    .read = read,
                    .write = write_llama_fields,
                    .window = {.is_on = false,
                               .otherwise = 4096,
                               .has_first_layer = true,
                               .first_layer = 28,
                               .layer_types_decide = true}};

}  // namespace t2r::model
