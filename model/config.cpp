#include "model/config.h"

#include <algorithm>
#include <cmath>

#include "base/error.h"

namespace t2r::model {
namespace {

void check(bool condition, const char* field, int64_t value, const std::string& allowed) {
  if (!condition)
    throw ConfigError(concat("model config: ", field, " = ", value, ", allowed: ", allowed));
}

void check_positive(const char* field, int64_t value) {
  check(value > 0, field, value, "1 or more");
}

void check_feature_map(const std::string& name) {
  const std::vector<std::string>& names = feature_map_names();
  if (std::find(names.begin(), names.end(), name) != names.end()) return;
  std::string allowed;
  for (const std::string& known : names) allowed += (allowed.empty() ? "" : ", ") + known;
  throw ConfigError(concat("feature_map = \"", name, "\", allowed: ", allowed));
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
  if (!(linear.denominator_floor > 0.0)) {
    throw ConfigError(
        concat("denominator_floor = ", linear.denominator_floor, ", allowed: above 0"));
  }
  for (const int64_t layer : linear.softmax_layers) {
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

double DecoderConfig::query_scale(int64_t layer) const {
  double scale = scale_attention ? 1.0 / std::sqrt(static_cast<double>(head_dim)) : 1.0;
  if (scale_by_inverse_layer) scale /= static_cast<double>(layer + 1);
  return scale;
}

void DecoderConfig::validate() const {
  check_positive("vocab_size", vocab_size);
  check_positive("hidden_size", hidden_size);
  check_positive("num_layers", num_layers);
  check_positive("num_heads", num_heads);
  check_positive("num_kv_heads", num_kv_heads);
  check_positive("head_dim", head_dim);
  check_positive("intermediate_size", intermediate_size);
  check_positive("max_positions", max_positions);
  check(num_heads % num_kv_heads == 0,
        "num_kv_heads",
        num_kv_heads,
        concat("a divisor of num_heads = ", num_heads));
  if (family == Family::kLlama)
    check(head_dim % 2 == 0, "head_dim", head_dim, "an even number (RoPE)");
  if (family == Family::kGpt2) {
    check(num_heads * head_dim == hidden_size,
          "hidden_size",
          hidden_size,
          concat("num_heads * head_dim = ", num_heads * head_dim));
  }
  if (linear.has_value()) validate_linear(*linear, *this);
}

std::vector<int64_t> every_nth_layer_from_top(int64_t num_layers, int64_t n) {
  require(n >= 1, "every_nth_layer_from_top: n must be 1 or more");
  std::vector<int64_t> layers;
  for (int64_t layer = num_layers - 1; layer >= 0; layer -= n) layers.push_back(layer);
  std::reverse(layers.begin(), layers.end());
  return layers;
}

}  // namespace t2r::model
