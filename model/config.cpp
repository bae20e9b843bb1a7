#include "model/config.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "base/error.h"
#include "base/text.h"

namespace t2r::model {
namespace {

void check(bool condition, const std::string& field, int64_t value, const std::string& allowed) {
  if (!condition)
    throw ConfigError(concat("model config: ", field, " = ", value, ", allowed: ", allowed));
}

// Far above any model, and such that the bytes of all parameters still fit in 63 bits.
constexpr int64_t kMaxLayers = 1 << 12;
constexpr int64_t kMaxWidth = 1 << 20;  ///< of hidden states, and of all heads together
constexpr int64_t kMaxIntermediate = 1 << 24;
constexpr int64_t kMaxIds = std::numeric_limits<int32_t>::max();  ///< tokens are int32

void check_size(const std::string& field, int64_t value, int64_t largest) {
  check(value >= 1 && value <= largest, field, value, concat("1 to ", largest));
}

void check_above_0(const std::string& field, double value) {
  if (!(value > 0.0) || !std::isfinite(value))
    throw ConfigError(
        concat("model config: ", field, " = ", number_text(value), ", allowed: above 0"));
}

/// A field with what its config.json calls it.
std::string named(const std::string& field, const std::string& in_file) {
  return field == in_file ? field : concat(field, " (", in_file, ")");
}

void check_feature_map(const std::string& name) {
  const std::vector<std::string>& names = feature_map_names();
  if (std::find(names.begin(), names.end(), name) != names.end()) return;
  throw ConfigError(concat("feature_map = \"", name, "\", allowed: ", joined(names)));
}

void validate_linear(const LinearAttentionConfig& linear, const DecoderConfig& config) {
  check_feature_map(linear.feature_map);
  check(linear.feature_size >= 1 && linear.feature_size <= 4096,
        "feature_size",
        linear.feature_size,
        "1 to 4096");
  if (linear.feature_map == "elu") {
    check(linear.feature_size == config.head_dim,
          "feature_size",
          linear.feature_size,
          concat(config.head_dim, " (elu maps each head dimension to one feature)"));
  }
  if (linear.feature_map == "hedgehog") {
    check(
        linear.feature_size % 2 == 0 && linear.feature_size <= 2 * config.head_dim,
        "feature_size",
        linear.feature_size,
        concat("even, at most ", 2 * config.head_dim, " (hedgehog: two for each row of its map)"));
  }
  check_above_0("denominator_floor", linear.denominator_floor);
  for (size_t i = 0; i < linear.softmax_layers.size(); ++i) {
    const int64_t layer = linear.softmax_layers[i];
    check(i == 0 || layer > linear.softmax_layers[i - 1],
          "softmax_layers",
          layer,
          "each layer once, in ascending order");
    check(layer >= 0 && layer < config.num_layers,
          "softmax_layers",
          layer,
          concat("0 to ", config.num_layers - 1, " (the model's layers)"));
  }
}

}  // namespace

const std::vector<std::string>& feature_map_names() {
  static const std::vector<std::string> names{"t2r", "elu", "hedgehog"};
  return names;
}

int64_t default_feature_size(const std::string& feature_map, int64_t head_dim) {
  if (feature_map == "elu") return head_dim;
  return feature_map == "hedgehog" ? 2 * head_dim : 32;
}

bool DecoderConfig::is_linear_layer(int64_t layer) const {
  return linear.has_value() &&
         !std::binary_search(linear->softmax_layers.begin(), linear->softmax_layers.end(), layer);
}

bool DecoderConfig::has_rope(int64_t layer) const {
  const std::vector<int64_t>& without = block.layers_without_rope;
  return block.positions == Positions::kRope &&
         !std::binary_search(without.begin(), without.end(), layer);
}

int64_t DecoderConfig::num_looked_up() const {
  const int64_t rows =
      (tied_embeddings ? 0 : vocab_size) + (has_learned_positions() ? max_positions : 0);
  return rows * hidden_size;
}

double DecoderConfig::query_scale(int64_t layer) const {
  double scale = block.scale_attention ? 1.0 / std::sqrt(static_cast<double>(head_dim)) : 1.0;
  if (block.scale_by_inverse_layer) scale /= static_cast<double>(layer + 1);
  return scale;
}

void DecoderConfig::validate() const {
  check_size("vocab_size", vocab_size, kMaxIds);
  check_size(named("hidden_size", fields.hidden_size), hidden_size, kMaxWidth);
  check_size(named("num_layers", fields.num_layers), num_layers, kMaxLayers);
  check_size(named("num_heads", fields.num_heads), num_heads, kMaxWidth);
  const char* kv_heads = "num_kv_heads (num_key_value_heads)";
  check_size(kv_heads, num_kv_heads, kMaxWidth);
  check_size("head_dim", head_dim, kMaxWidth / num_heads);
  check_size(
      named("intermediate_size", fields.intermediate_size), intermediate_size, kMaxIntermediate);
  check_size(named("max_positions", fields.max_positions), max_positions, kMaxIds);
  check_above_0(named("norm_eps", fields.norm_eps), norm_eps);
  check_above_0("rope_theta", rope.theta);
  if (!(initializer_range >= 0.0) || !std::isfinite(initializer_range))
    throw ConfigError(
        concat("model config: initializer_range = ", initializer_range, ", allowed: 0 or more"));
  check(num_heads % num_kv_heads == 0,
        kv_heads,
        num_kv_heads,
        concat("a divisor of num_heads = ", num_heads));
  if (block.positions == Positions::kRope)
    check(head_dim % 2 == 0, "head_dim", head_dim, "an even number (RoPE)");
  if (!block.has_free_heads) {
    check(num_kv_heads == num_heads, kv_heads, num_kv_heads, concat("num_heads = ", num_heads));
    check(num_heads * head_dim == hidden_size,
          "hidden_size",
          hidden_size,
          concat("num_heads * head_dim = ", num_heads * head_dim));
  }
  if (linear.has_value()) validate_linear(*linear, *this);
}

std::vector<int64_t> kept_softmax_layers(std::vector<int64_t> layers,
                                         int64_t num_layers,
                                         const std::string& remedy) {
  std::ranges::sort(layers);
  layers.erase(std::unique(layers.begin(), layers.end()), layers.end());
  const int64_t num_kept = std::ranges::count_if(
      layers, [&](int64_t layer) { return layer >= 0 && layer < num_layers; });
  if (num_layers > 0 && num_kept == num_layers)
    throw ConfigError(concat("all ", num_layers, " layers keep softmax attention: ", remedy));
  return layers;
}

std::vector<int64_t> every_nth_layer_from_top(int64_t num_layers, int64_t n) {
  require(n >= 1, "every_nth_layer_from_top: n must be 1 or more");
  std::vector<int64_t> layers;
  for (int64_t layer = num_layers - 1; layer >= 0; layer -= n) layers.push_back(layer);
  std::reverse(layers.begin(), layers.end());
  return layers;
}

}  // namespace t2r::model
