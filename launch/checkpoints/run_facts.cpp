#include "launch/checkpoints/run_facts.h"

#include <algorithm>
#include <nlohmann/json.hpp>
#include <optional>

#include "base/error.h"
#include "launch/options/option_value.h"

namespace t2r::launch {
namespace {

constexpr size_t kMaxShown = 6;
constexpr const char* kNone = "none";

std::optional<std::string> value_of(const RunFacts& facts, const std::string& key) {
  for (const auto& [name, value] : facts) {
    if (name == key) return value;
  }
  return std::nullopt;
}

const char* name_of(model::Activation activation) {
  switch (activation) {
    case model::Activation::kGeluTanh:
      return "gelu-tanh";
    case model::Activation::kGeluErf:
      return "gelu-erf";
    case model::Activation::kRelu:
      return "relu";
    case model::Activation::kSilu:
      return "silu";
  }
  return "";
}

std::string list_text(const std::vector<int64_t>& values) {
  return nlohmann::json(values).dump();
}

}  // namespace

std::vector<FactDifference> differences(const RunFacts& there, const RunFacts& here) {
  std::vector<FactDifference> found;
  for (const auto& [key, value] : there) {
    const std::string other = value_of(here, key).value_or(kNone);
    if (other != value) found.push_back({key, value, other});
  }
  for (const auto& [key, value] : here) {
    if (!value_of(there, key).has_value() && value != kNone) found.push_back({key, kNone, value});
  }
  return found;
}

std::string text_of(const std::vector<FactDifference>& differences, const std::string& there) {
  std::string text;
  const size_t num_shown = std::min(differences.size(), kMaxShown);
  for (size_t i = 0; i < num_shown; ++i) {
    const auto& [key, first, second] = differences[i];
    text +=
        concat(i > 0 ? "; " : "", key, " = ", first, " ", there, ", ", key, " = ", second, " here");
  }
  if (differences.size() > num_shown)
    text += concat("; and ", differences.size() - num_shown, " more");
  return text;
}

RunFacts model_facts(const model::DecoderConfig& config) {
  const auto flag = [](bool value) { return std::string(value ? "true" : "false"); };
  const auto number = [](int64_t value) { return std::to_string(value); };
  const model::BlockSpec& block = config.block;
  RunFacts facts = {
      {"model.family", config.family},
      {"model.vocab-size", number(config.vocab_size)},
      {"model.hidden-size", number(config.hidden_size)},
      {"model.layers", number(config.num_layers)},
      {"model.heads", number(config.num_heads)},
      {"model.kv-heads", number(config.num_kv_heads)},
      {"model.head-dim", number(config.head_dim)},
      {"model.intermediate-size", number(config.intermediate_size)},
      {"model.max-positions", number(config.max_positions)},
      {"model.activation", name_of(block.activation)},
      {"model.norm-eps", fact_text(config.norm_eps)},
      {"model.rope-theta", fact_text(config.rope.theta)},
      {"model.rope-type", config.rope.type},
      {"model.rope-factor", fact_text(config.rope.factor)},
      {"model.rope-low-freq-factor", fact_text(config.rope.low_freq_factor)},
      {"model.rope-high-freq-factor", fact_text(config.rope.high_freq_factor)},
      {"model.rope-original-max-positions", number(config.rope.original_max_positions)},
      {"model.tied-embeddings", flag(config.tied_embeddings)},
      {"model.attention-bias", flag(block.qkv_bias)},
      {"model.mlp-bias", flag(block.mlp_bias)},
      {"model.scale-attention", flag(block.scale_attention)},
      {"model.scale-by-inverse-layer", flag(block.scale_by_inverse_layer)},
      {"model.attention", config.linear.has_value() ? config.linear->feature_map : "softmax"}};
  if (!block.layers_without_rope.empty())
    facts.emplace_back("model.layers-without-rope", list_text(block.layers_without_rope));
  if (config.linear.has_value()) {
    facts.emplace_back("model.feature-size", number(config.linear->feature_size));
    facts.emplace_back("model.denominator-floor", fact_text(config.linear->denominator_floor));
    facts.emplace_back("model.map-per-query-head", flag(config.linear->map_per_query_head));
    facts.emplace_back("model.softmax-layers", list_text(config.linear->softmax_layers));
  }
  return facts;
}

}  // namespace t2r::launch
