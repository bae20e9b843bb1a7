// Llama: RMSNorm, RoPE, a gated MLP; what the defaults of BlockSpec and of the names say. Source:
// transformers, modeling_llama.py.
#include "model/families/family.h"
#include "model/families/llama_fields.h"

namespace t2r::model {
namespace {

void describe(DecoderConfig&) {}

void read(const Fields& fields, DecoderConfig& config) {
  read_llama_fields(fields, {}, config);
  read_attention_bias(fields, config);
  config.block.mlp_bias = fields.get_or("mlp_bias", false);
}

void write(const DecoderConfig& config, Fields::Json& json) {
  write_llama_fields(config, json);
  json["attention_bias"] = config.block.qkv_bias;
  json["mlp_bias"] = config.block.mlp_bias;
}

}  // namespace

const Family kLlama{.model_type = "llama",
                    .architecture = "LlamaForCausalLM",
                    .describe = describe,
                    .read = read,
                    .write = write};

}  // namespace t2r::model
