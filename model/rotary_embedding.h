#pragma once

#include <torch/types.h>

#include "model/config.h"

namespace t2r::model {

/// Tables of rotary position embedding, grown on demand: any position is meaningful.
class RotaryEmbedding {
 public:
  RotaryEmbedding(const RopeConfig& config, int64_t head_dim);

  struct Tables {
    torch::Tensor cosine_Td;  ///< [T, d / 2] float32
    torch::Tensor sine_Td;
  };

  /// Of positions [begin, begin + length), on `device`.
  Tables at(int64_t begin, int64_t length, const torch::Device& device);

 private:
  torch::Tensor inverse_frequency_;  ///< [d / 2]
  torch::Tensor cosine_, sine_;      ///< [capacity, d / 2], on the device asked for last
};

}  // namespace t2r::model
