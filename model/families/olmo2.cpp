// OLMo 2: norms behind the branches, and of all queries and of all keys of a layer. Source:
// transformers, modeling_olmo2.py.
#include "model/families/family.h"
#include "model/families/llama_fields.h"

namespace t2r::model {
namespace {

void describe(DecoderConfig& config) {
  config.block.norm_place = NormPlace::kBehind;
  config.block.qk_norm = QkNorm::kWholeWidth;
  config.names.attention_norm = "post_attention_layernorm";
  config.names.mlp_norm = "post_feedforward_layernorm";
}

void read(const Fields& fields, DecoderConfig& config) {
  read_llama_fields(fields, {.norm_eps = 1e-5}, config);
  read_attention_bias(fields, config);
}

void write(const DecoderConfig& config, Fields::Json& json) {
  write_llama_fields(config, json);
  json["attention_bias"] = config.block.qkv_bias;
}

}  // namespace

const Family kOlmo2{.model_type = "olmo2",
                    .architecture = "Olmo2ForCausalLM",
                    .describe = describe,
                    .read = read,
                    .write = write};

}  // namespace t2r::model
