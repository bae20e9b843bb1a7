// StarCoder 2: Llama's attention with LayerNorm, biases and an MLP of two matrices. Source:
// transformers, modeling_starcoder2.py.
#include "model/families/activation_names.h"
#include "model/families/family.h"
#include "model/families/llama_fields.h"

namespace t2r::model {
namespace {

void set_biases(bool use_bias, BlockSpec& block) {
  block.qkv_bias = block.output_bias = block.mlp_bias = use_bias;
}

void describe(DecoderConfig& config) {
  config.block.norm = NormKind::kLayer;
  config.block.has_gated_mlp = false;
  config.block.activation = Activation::kGeluTanh;
  set_biases(true, config.block);
  config.names.up = {"c_fc"};
  config.names.down = "c_proj";
  config.fields.norm_eps = "norm_epsilon";
  config.tied_embeddings = true;
  config.initializer_range = 0.018042;
}

void read(const Fields& fields, DecoderConfig& config) {
  read_llama_fields(fields, {.num_kv_heads = 2, .max_positions = 4096}, config);
  config.block.activation = parse_activation(
      fields.get_or<std::string>("hidden_act", "gelu_pytorch_tanh"), fields.file());
  config.norm_eps = fields.positive_or("norm_epsilon", 1e-5);
  set_biases(fields.get_or("use_bias", true), config.block);
}

void write(const DecoderConfig& config, Fields::Json& json) {
  write_llama_fields(config, json);
  json.erase("rms_norm_eps");
  json["norm_epsilon"] = config.norm_eps;
  json["use_bias"] = config.block.qkv_bias;
}

}  // namespace

const Family kStarcoder2{.model_type = "starcoder2",
                         .architecture = "Starcoder2ForCausalLM",
                         .describe = describe,
                         .read = read,
                         .write = write,
                         .window = {.has_switch = false}};

}  // namespace t2r::model
