#include "model/attention/feature_map.h"

#include <cmath>

#include "base/error.h"

namespace t2r::model {
namespace {

using torch::Tensor;

/// activate(scale W x + b): x_BTHd -> [B, T, max(H, M), K], with a matrix for each of M maps.
/// Groups of heads share a map, or groups of maps their head.
template <class Activate>
Tensor map_heads(const Tensor& x_BTHd,
                 const Tensor& weight_MKd,
                 const Tensor& bias_MK,
                 double scale,
                 const Activate& activate) {
  const int64_t batch = x_BTHd.size(0), length = x_BTHd.size(1), heads = x_BTHd.size(2),
                head_dim = x_BTHd.size(3);
  const int64_t maps = weight_MKd.size(0), features = weight_MKd.size(1);
  if (heads < maps) {
    return map_heads(
        x_BTHd.repeat_interleave(maps / heads, 2), weight_MKd, bias_MK, scale, activate);
  }
  // Heads become the batch of one product; strided heads need no copy.
  const auto map = [&](const Tensor& x_MNd) {
    return activate(
        at::baddbmm(bias_MK.unsqueeze(1), x_MNd, weight_MKd.transpose(1, 2), 1.0, scale));
  };
  if (heads == maps) {
    return map(x_BTHd.reshape({batch * length, heads, head_dim}).transpose(0, 1))
        .view({heads, batch, length, features})
        .permute({1, 2, 0, 3});
  }
  const int64_t shared = heads / maps;
  const Tensor x_MNd = x_BTHd.reshape({batch * length, maps, shared, head_dim})
                           .transpose(0, 1)
                           .reshape({maps, batch * length * shared, head_dim});
  return map(x_MNd)
      .view({maps, batch, length, shared, features})
      .permute({1, 2, 0, 3, 4})
      .reshape({batch, length, heads, features});
}

/// Maps of a layer: one per query head, or one per key/value head.
int64_t num_maps(const DecoderConfig& config) {
  return config.linear->map_per_query_head ? config.num_heads : config.num_kv_heads;
}

/// Adds W [M, rows, d] and b [M, rows] of a learned map to `parameters`.
std::pair<Tensor, Tensor> add_map(const DecoderConfig& config,
                                  int64_t rows,
                                  const std::string& prefix,
                                  int64_t group,
                                  ParameterSet& parameters) {
  const int64_t maps = num_maps(config);
  const Tensor weight =
      parameters.add(prefix + ".weight", {maps, rows, config.head_dim}, group, true);
  parameters.mark_last_as_new();
  const Tensor bias = parameters.add(prefix + ".bias", {maps, rows}, group, false);
  parameters.mark_last_as_new();
  return {weight, bias};
}

/// phi(x) = relu(W x + b), learned. Source: Kasai et al. 2021, equation 3; initialisation as
/// released (nn.Linear's).
class T2rMap : public FeatureMap {
 public:
  T2rMap(const DecoderConfig& config,
         const std::string& prefix,
         int64_t group,
         ParameterSet& parameters)
      : num_maps_(num_maps(config)),
        feature_size_(config.linear->feature_size),
        head_dim_(config.head_dim),
        floor_(config.linear->denominator_floor) {
    std::tie(weight_MKd_, bias_MK_) = add_map(config, feature_size_, prefix, group, parameters);
  }

  Tensor query_features(const Tensor& q_BTHd, double scale) const override {
    return features(q_BTHd, scale);
  }
  Tensor key_features(const Tensor& k_BTHd) const override { return features(k_BTHd, 1.0); }

  int64_t feature_size() const override { return feature_size_; }
  int64_t state_heads() const override { return num_maps_; }
  DenominatorRule denominator_rule() const override { return {.floor = floor_, .added = 0.0}; }
  std::optional<Affine> affine() const override { return Affine{weight_MKd_, bias_MK_}; }
  Tensor activate(const Tensor& y) const override { return at::relu(y); }

  void initialize(torch::Generator& generator) override {
    const torch::NoGradGuard no_grad;
    const double bound = 1.0 / std::sqrt(static_cast<double>(head_dim_));
    weight_MKd_.uniform_(-bound, bound, generator);
    bias_MK_.uniform_(-bound, bound, generator);
  }

 private:
  Tensor features(const Tensor& x_BTHd, double scale) const {
    return map_heads(
        x_BTHd, weight_MKd_, bias_MK_, scale, [](const Tensor& y) { return at::relu(y); });
  }

  int64_t num_maps_, feature_size_, head_dim_;
  double floor_;
  Tensor weight_MKd_, bias_MK_;
};

/// phi(x) = elu(x) + 1, no parameters, 1e-6 added to the denominator. Source: Katharopoulos et al.
/// 2020. Computed as exp(min(x, 0)) + max(x, 0): elu(x) + 1 in bfloat16 is 0 below x = -6.
class EluMap : public FeatureMap {
 public:
  explicit EluMap(const DecoderConfig& config)
      : heads_(config.num_kv_heads), head_dim_(config.head_dim) {}

  Tensor query_features(const Tensor& q_BTHd, double) const override { return features(q_BTHd); }
  Tensor key_features(const Tensor& k_BTHd) const override { return features(k_BTHd); }
  int64_t feature_size() const override { return head_dim_; }
  int64_t state_heads() const override { return heads_; }
  DenominatorRule denominator_rule() const override { return {.floor = 0.0, .added = 1e-6}; }
  void initialize(torch::Generator&) override {}

 private:
  static Tensor features(const Tensor& x) { return at::exp(at::clamp_max(x, 0.0)) + at::relu(x); }

  int64_t heads_, head_dim_;
};

/// phi(x) = [softmax(W x + b), softmax(-W x - b)], learned from W = identity and b = 0. Source:
/// Hedgehog, Zhang et al. 2024 (arXiv:2402.04347), in the normalised form of its authors' LoLCATs.
///
/// As there, queries are not scaled by d^-1/2: W holds the temperature. One W serves queries and
/// keys, as in T2R; their projections train too. Each half of phi sums to 1, so phi(q) . z is
/// positive: 2 / d a token where features are flat (T2R's floor of 1e-2 is too near that), and near
/// 0 only where sharp features do not meet. 1e-6 is added against that, as for ELU.
class HedgehogMap : public FeatureMap {
 public:
  HedgehogMap(const DecoderConfig& config,
              const std::string& prefix,
              int64_t group,
              ParameterSet& parameters)
      : num_maps_(num_maps(config)), rows_(config.linear->feature_size / 2) {
    std::tie(weight_MRd_, bias_MR_) = add_map(config, rows_, prefix, group, parameters);
  }

  Tensor query_features(const Tensor& q_BTHd, double) const override { return features(q_BTHd); }
  Tensor key_features(const Tensor& k_BTHd) const override { return features(k_BTHd); }

  int64_t feature_size() const override { return 2 * rows_; }
  int64_t state_heads() const override { return num_maps_; }
  DenominatorRule denominator_rule() const override { return {.floor = 0.0, .added = 1e-6}; }
  std::optional<Affine> softmax_pair() const override { return Affine{weight_MRd_, bias_MR_}; }

  void initialize(torch::Generator&) override {
    const torch::NoGradGuard no_grad;
    weight_MRd_.copy_(
        torch::eye(rows_, weight_MRd_.size(2), weight_MRd_.options()).expand_as(weight_MRd_));
    bias_MR_.zero_();
  }

 private:
  Tensor features(const Tensor& x_BTHd) const {
    // Both signs in one product and both softmaxes in one pass.
    return map_heads(x_BTHd,
                     torch::cat({weight_MRd_, -weight_MRd_}, 1),
                     torch::cat({bias_MR_, -bias_MR_}, 1),
                     1.0,
                     [&](const Tensor& y) {
                       return at::softmax(y.unflatten(-1, {2, rows_}), -1).flatten(-2);
                     });
  }

  int64_t num_maps_, rows_;
  Tensor weight_MRd_, bias_MR_;  ///< R rows
};

}  // namespace

std::unique_ptr<FeatureMap> make_feature_map(const DecoderConfig& config,
                                             const std::string& prefix,
                                             int64_t group,
                                             ParameterSet& parameters) {
  require(config.linear.has_value(), "make_feature_map: the config has no linear attention");
  const std::string& name = config.linear->feature_map;
  if (name == "t2r") return std::make_unique<T2rMap>(config, prefix, group, parameters);
  if (name == "elu") return std::make_unique<EluMap>(config);
  if (name == "hedgehog") return std::make_unique<HedgehogMap>(config, prefix, group, parameters);
  throw ContractError(concat("make_feature_map: \"", name, "\" is not one of feature_map_names()"));
}

}  // namespace t2r::model
