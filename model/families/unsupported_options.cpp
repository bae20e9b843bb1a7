#include "model/families/unsupported_options.h"

#include <algorithm>

namespace t2r::model {
namespace {

using Json = Fields::Json;

/// Options of other models that some configs of our families carry: allowed where they are off.
constexpr const char* kMustBeOff[] = {"add_cross_attention",
                                      "alibi",
                                      "attention_chunk_size",
                                      "attention_multiplier",
                                      "attn_logit_softcapping",
                                      "clip_qkv",
                                      "cross_attention_layers",
                                      "final_logit_softcapping",
                                      "is_encoder_decoder",
                                      "n_routed_experts",
                                      "no_rope_layer_interval",
                                      "no_rope_layers",
                                      "num_experts",
                                      "num_local_experts",
                                      "parallel_attn",
                                      "per_layer_config",
                                      "qk_layernorm",
                                      "qk_norm",
                                      "query_pre_attn_scalar",
                                      "use_alibi",
                                      "use_bidirectional_attention",
                                      "use_parallel_residual",
                                      "use_qk_norm"};

/// Factors: allowed where they are 1.
constexpr const char* kMustBeOne[] = {"embedding_multiplier",
                                      "logit_scale",
                                      "logits_scaling",
                                      "partial_rotary_factor",
                                      "residual_multiplier",
                                      "rotary_pct",
                                      "scale_emb"};

/// Where quantized weights are described: transformers, compressed-tensors, MLX.
constexpr const char* kQuantization[] = {
    "quantization_config", "compression_config", "quantization"};

bool is_off(const Json& value) {
  return value.is_null() || (value.is_boolean() && !value.get<bool>()) ||
         (value.is_number() && value.get<double>() == 0.0) ||
         (value.is_structured() && value.empty());
}

[[noreturn]] void refuse(const Fields& fields, const char* name, const std::string& allowed) {
  fields.refuse(name, allowed + "; t2r does not compute this");
}

void refuse_quantized(const Fields& fields) {
  for (const char* name : kQuantization) {
    if (!fields.has(name) || is_off(fields.json().at(name))) continue;
    const Json& section = fields.json().at(name);
    std::string method;
    if (section.is_object() && section.contains("quant_method"))
      method = concat(" (quant_method ", value_text(section.at("quant_method")), ")");
    throw ConfigError(concat(fields.file(),
                             ": ",
                             name,
                             method,
                             " says that the weights are quantized, allowed: float32, bfloat16, "
                             "float16, float64; take the model that this one was made from, or "
                             "save it after model.dequantize() without ",
                             name));
  }
}

/// The window of layers that have one; 0: none has.
int64_t window_of(const Fields& fields, const WindowFields& rule) {
  if (rule.has_switch && !fields.get_or("use_sliding_window", rule.is_on)) return 0;
  const int64_t layers = fields.get_or<int64_t>("num_hidden_layers", 0);
  if (rule.has_first_layer && fields.get_or("max_window_layers", rule.first_layer) >= layers)
    return 0;
  if (!fields.json().contains("sliding_window")) return rule.otherwise;
  return is_off(fields.json().at("sliding_window")) ? 0 : fields.get<int64_t>("sliding_window");
}

void refuse_windows(const Fields& fields, const WindowFields& rule) {
  bool is_sliding = false;
  if (fields.has("layer_types")) {
    const Json& types = fields.json().at("layer_types");
    const auto are = [&](const auto& accepts) {
      return types.is_array() && std::ranges::all_of(types, accepts);
    };
    const bool is_full = are([](const Json& type) { return type == "full_attention"; });
    if (is_full && rule.layer_types_decide) return;
    is_sliding = !is_full && rule.layer_types_decide && are([](const Json& type) {
      return type == "full_attention" || type == "sliding_attention";
    });
    if (!is_full && !is_sliding)
      refuse(fields, "layer_types", "\"full_attention\" for every layer");
  }
  const int64_t window =
      is_sliding ? fields.get_or("sliding_window", rule.otherwise) : window_of(fields, rule);
  const auto positions = fields.get_or<int64_t>("max_position_embeddings", 0);
  if ((window == 0 && !is_sliding) || (positions > 0 && window >= positions)) return;
  const std::string found = fields.has("sliding_window")
                                ? value_text(fields.json().at("sliding_window"))
                                : concat(window, " (not said)");
  fields.refuse("sliding_window",
                found,
                "null, or max_position_embeddings and more; t2r does not compute this");
}

}  // namespace

void refuse_unsupported_options(const Fields& fields, const Family& family) {
  const auto is_own = [&](const std::string_view name) {
    return std::ranges::any_of(family.own_options,
                               [&](const char* own) { return own != nullptr && name == own; });
  };
  refuse_quantized(fields);
  for (const char* name : kMustBeOff)
    if (fields.has(name) && !is_off(fields.json().at(name)) && !is_own(name))
      refuse(fields, name, "off (false, 0 or null)");
  for (const char* name : kMustBeOne)
    if (fields.has(name) && fields.get<double>(name) != 1.0) refuse(fields, name, "1");
  if (!fields.get_or("is_causal", true)) refuse(fields, "is_causal", "true");
  refuse_windows(fields, family.window);
}

}  // namespace t2r::model
