#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "model/block_spec.h"
#include "model/family_names.h"

namespace t2r::model {

/// How far and how the rotation of a position grows. Source: transformers, modeling_rope_utils.py.
struct RopeConfig {
  double theta = 10000.0;
  std::string type = "default";  ///< default, linear, llama3
  double factor = 1.0;
  double low_freq_factor = 1.0;
  double high_freq_factor = 4.0;
  int64_t original_max_positions = 8192;

  bool operator==(const RopeConfig&) const = default;
};

/// The part of a config that T2R adds: which layers are linear, and with which feature map.
struct LinearAttentionConfig {
  std::string feature_map = "t2r";  ///< one of feature_map_names()
  int64_t feature_size = 32;        ///< features per head
  double denominator_floor = 1e-2;  ///< t2r clamps phi(q) . z from below
  bool map_per_query_head = false;  ///< grouped queries: a map (and a state) per query head
  std::vector<int64_t> softmax_layers = {};  ///< layers that keep softmax attention, ascending

  bool operator==(const LinearAttentionConfig&) const = default;
};

/// The maps of model/attention/feature_map.h: t2r, elu, hedgehog.
const std::vector<std::string>& feature_map_names();

/// Features per head where nothing else is asked for: 32 for t2r, d for elu and 2 d for hedgehog
/// with heads of d.
int64_t default_feature_size(const std::string& feature_map, int64_t head_dim);

/// A decoder-only language model. Begin with config_of() (model/families/families.h), which sets
/// what a family has in common; the defaults are Llama's.
struct DecoderConfig {
  std::string family = "llama";  ///< model_type, a row of the table of families
  BlockSpec block = {};
  TensorNames names = {};
  FieldNames fields = {};
  int64_t vocab_size = 0;
  int64_t hidden_size = 0;
  int64_t num_layers = 0;
  int64_t num_heads = 0;
  int64_t num_kv_heads = 0;
  int64_t head_dim = 0;
  int64_t intermediate_size = 0;
  int64_t max_positions = 0;  ///< rows of the position table; with RoPE the trained context
  double norm_eps = 1e-5;
  RopeConfig rope = {};
  bool tied_embeddings = false;
  double initializer_range = 0.02;
  int64_t bos_token_id = -1;
  std::vector<int64_t> eos_token_ids = {};
  std::optional<LinearAttentionConfig> linear = {};

  bool is_linear_layer(int64_t layer) const;
  bool has_rope(int64_t layer) const;
  bool has_learned_positions() const { return block.positions == Positions::kLearned; }

  /// Scalars of the tables that are looked up and nothing else: a tied embedding is the head, too.
  int64_t num_looked_up() const;

  /// Factor on the queries of a layer: what softmax multiplies its scores with, and T2R its queries
  /// before the map.
  double query_scale(int64_t layer) const;

  /// Sizes are bounded so that no product of them overflows: the bytes of all parameters fit in 63
  /// bits.
  /// @throws ConfigError  naming field, value and what is allowed
  void validate() const;

  bool operator==(const DecoderConfig&) const = default;
};

/// Layers that a user wants to keep softmax, as a config has them: ascending, each once.
/// @param remedy  of the message "all N layers keep softmax attention: REMEDY"
/// @throws ConfigError  if they are all of the model's, so that none would be linear
std::vector<int64_t> kept_softmax_layers(std::vector<int64_t> layers,
                                         int64_t num_layers,
                                         const std::string& remedy);

/// Layers that keep softmax when every n-th is kept, counted from the top (T2R 75 %: n = 4).
std::vector<int64_t> every_nth_layer_from_top(int64_t num_layers, int64_t n);

/// What the backward computes again instead of keeping it from the forward: less memory, more time.
enum class Recompute {
  kNothing,
  kMlps,  ///< of each layer the MLP's inner activations
  kAll,   ///< and all of its attention: a layer keeps its two normalised inputs and sums
};

}  // namespace t2r::model
