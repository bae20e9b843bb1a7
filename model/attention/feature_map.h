#pragma once

#include <torch/types.h>

#include <memory>
#include <optional>
#include <string>

#include "model/attention/linear_attention.h"
#include "model/config.h"
#include "model/parameters.h"

namespace t2r::model {

/// The map phi of linear attention: similarity(q, s) = phi(q) . phi(s).
///
/// Legend: B batch, T tokens, H heads, d head dimension, K features, M maps (one per key/value or
/// per query head).
class FeatureMap {
 public:
  virtual ~FeatureMap() = default;

  /// phi of queries: q_BTHd -> [B, T, H, K]. `scale` is DecoderConfig::query_scale; a map whose
  /// definition does not scale the queries leaves it out.
  virtual torch::Tensor query_features(const torch::Tensor& q_BTHd, double scale) const = 0;

  /// phi of keys: k_BTHd -> [B, T, M, K]; with a map per query head, every map of a group sees its
  /// one key head.
  virtual torch::Tensor key_features(const torch::Tensor& k_BTHd) const = 0;

  virtual int64_t feature_size() const = 0;

  /// Heads of the state: maps, or key/value heads if the map has no parameters.
  virtual int64_t state_heads() const = 0;

  virtual DenominatorRule denominator_rule() const = 0;

  /// A map of the form activate(scale W x + b): W [M, K, d] and b [M, K] can be merged into the
  /// projections before it.
  struct Affine {
    torch::Tensor weight_MKd;
    torch::Tensor bias_MK;
  };
  virtual std::optional<Affine> affine() const { return std::nullopt; }

  /// The W and b of a map of the form [softmax(W x + b), softmax(-W x - b)], which a GPU has a
  /// kernel for.
  virtual std::optional<Affine> softmax_pair() const { return std::nullopt; }

  /// The activation of the affine form.
  virtual torch::Tensor activate(const torch::Tensor& y) const { return y; }

  /// Random initial parameters.
  virtual void initialize(torch::Generator& generator) = 0;
};

/// The map that `config` names; its parameters are added to `parameters` under `prefix`.
/// The config is valid (DecoderConfig::validate).
std::unique_ptr<FeatureMap> make_feature_map(const DecoderConfig& config,
                                             const std::string& prefix,
                                             int64_t group,
                                             ParameterSet& parameters);

}  // namespace t2r::model
