#include "model/rotary_embedding.h"

#include <algorithm>
#include <cmath>
#include <numbers>

#include "base/error.h"

namespace t2r::model {

RotaryEmbedding::RotaryEmbedding(const RopeConfig& config, int64_t head_dim) {
  const torch::NoGradGuard no_grad;
  // float32 in the same order as transformers, so that tables agree to the last bits.
  const torch::Tensor exponent =
      torch::arange(0, head_dim, 2, torch::kFloat32) / static_cast<double>(head_dim);
  inverse_frequency_ = 1.0 / torch::pow(config.theta, exponent);
  if (config.type == "linear") {
    inverse_frequency_ = inverse_frequency_ / config.factor;
  } else if (config.type == "llama3") {
    const auto original = static_cast<double>(config.original_max_positions);
    const torch::Tensor wavelength = 2.0 * std::numbers::pi / inverse_frequency_;
    const torch::Tensor smooth = ((original / wavelength - config.low_freq_factor) /
                                  (config.high_freq_factor - config.low_freq_factor))
                                     .clamp(0.0, 1.0);
    inverse_frequency_ =
        (1.0 - smooth) * inverse_frequency_ / config.factor + smooth * inverse_frequency_;
  } else if (config.type != "default") {
    throw ConfigError(
        concat("rope type = \"", config.type, "\", allowed: default, linear, llama3"));
  }
}

RotaryEmbedding::Tables RotaryEmbedding::at(int64_t begin,
                                            int64_t length,
                                            const torch::Device& device) {
  const int64_t end = begin + length;
  if (!cosine_.defined() || cosine_.size(0) < end || cosine_.device() != device) {
    const torch::NoGradGuard no_grad;
    const int64_t capacity = std::max<int64_t>(end, cosine_.defined() ? 2 * cosine_.size(0) : 256);
    const torch::Tensor angles =
        torch::outer(torch::arange(capacity, torch::kFloat32), inverse_frequency_);
    cosine_ = angles.cos().to(device);
    sine_ = angles.sin().to(device);
  }
  return {cosine_.narrow(0, begin, length), sine_.narrow(0, begin, length)};
}

}  // namespace t2r::model
