#include "model/feature_map.h"

#include <cmath>

#include "base/error.h"

namespace t2r::model {
namespace {

using torch::Tensor;

/// phi(x) = relu(W x + b), learned. Source: Kasai et al. 2021, equation 3; initialisation as
/// released (nn.Linear's).
class T2rMap : public FeatureMap {
 public:
  T2rMap(const DecoderConfig& config,
         const std::string& prefix,
         int64_t group,
         ParameterSet& parameters)
      : num_maps_(config.linear->map_per_query_head ? config.num_heads : config.num_kv_heads),
        feature_size_(config.linear->feature_size),
        head_dim_(config.head_dim),
        floor_(config.linear->denominator_floor) {
    weight_MKd_ =
        parameters.add(prefix + ".weight", {num_maps_, feature_size_, head_dim_}, group, true);
    parameters.mark_last_as_new();
    bias_MK_ = parameters.add(prefix + ".bias", {num_maps_, feature_size_}, group, false);
    parameters.mark_last_as_new();
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
    const int64_t batch = x_BTHd.size(0), length = x_BTHd.size(1), heads = x_BTHd.size(2);
    // Heads become the batch of one product; strided heads need no copy.
    const auto product = [&](const Tensor& x_MNd) {
      return at::baddbmm(bias_MK_.unsqueeze(1), x_MNd, weight_MKd_.transpose(1, 2), 1.0, scale);
    };
    Tensor y_BTHK;
    if (heads == num_maps_) {
      const Tensor y_MNK =
          product(x_BTHd.reshape({batch * length, heads, head_dim_}).transpose(0, 1));
      y_BTHK = y_MNK.view({heads, batch, length, feature_size_}).permute({1, 2, 0, 3});
    } else if (heads > num_maps_) {
      const int64_t shared = heads / num_maps_;
      const Tensor x_MNd = x_BTHd.reshape({batch * length, num_maps_, shared, head_dim_})
                               .transpose(0, 1)
                               .reshape({num_maps_, batch * length * shared, head_dim_});
      y_BTHK = product(x_MNd)
                   .view({num_maps_, batch, length, shared, feature_size_})
                   .permute({1, 2, 0, 3, 4})
                   .reshape({batch, length, heads, feature_size_});
    } else {
      return features(x_BTHd.repeat_interleave(num_maps_ / heads, 2), scale);
    }
    return at::relu(y_BTHK);
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

}  // namespace

std::unique_ptr<FeatureMap> make_feature_map(const DecoderConfig& config,
                                             const std::string& prefix,
                                             int64_t group,
                                             ParameterSet& parameters) {
  require(config.linear.has_value(), "make_feature_map: the config has no linear attention");
  const std::string& name = config.linear->feature_map;
  if (name == "t2r") return std::make_unique<T2rMap>(config, prefix, group, parameters);
  if (name == "elu") return std::make_unique<EluMap>(config);
  throw ConfigError(concat("feature_map = \"", name, "\", allowed: t2r, elu"));
}

}  // namespace t2r::model
