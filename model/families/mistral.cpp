// Mistral: Llama whose layers look back over a window, where sliding_window names one. Source:
// transformers, modeling_mistral.py.
#include "model/families/family.h"
#include "model/families/llama_fields.h"

namespace t2r::model {
namespace {

void describe(DecoderConfig& config) {
  config.norm_eps = 1e-6;
}

void read(const Fields& fields, DecoderConfig& config) {
  read_llama_fields(fields, {.num_kv_heads = 8, .max_positions = 131072}, config);
}

void write(const DecoderConfig& config, Fields::Json& json) {
  write_llama_fields(config, json);
  json["sliding_window"] = nullptr;  // left out it would be 4096
}

}  // namespace

const Family kMistral{.model_type = "mistral",
                      .architecture = "MistralForCausalLM",
                      .describe = describe,
                      .read = read,
                      .write = write,
                      .window = {.has_switch = false, .otherwise = 4096}};

}  // namespace t2r::model
