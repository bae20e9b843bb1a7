#include "model/layers/rotary_embedding.h"

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
  reserve(begin + length, device);
  return {tables_.cosine_Td.narrow(0, begin, length), tables_.sine_Td.narrow(0, begin, length)};
}

RotaryEmbedding::Tables RotaryEmbedding::at(const torch::Tensor& position_1) const {
  return {tables_.cosine_Td.index_select(0, position_1),
          tables_.sine_Td.index_select(0, position_1)};
}

void RotaryEmbedding::reserve(int64_t length, const torch::Device& device) {
  if (capacity() >= length && tables_.cosine_Td.device() == device) return;
  const torch::NoGradGuard no_grad;
  const int64_t grown = std::max<int64_t>({length, 2 * capacity(), 256});
  const torch::Tensor angles =
      torch::outer(torch::arange(grown, torch::kFloat32), inverse_frequency_);
  tables_ = {angles.cos().to(device), angles.sin().to(device)};
}

}  // namespace t2r::model
