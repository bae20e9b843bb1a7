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

  /// Of the one position that a tensor [1] on a device holds, which is below capacity().
  Tables at(const torch::Tensor& position_1) const;

  /// Of all positions up to capacity().
  const Tables& tables() const { return tables_; }

  /// Grows the tables to at least `length` positions on `device`; those given before stay valid.
  void reserve(int64_t length, const torch::Device& device);
  int64_t capacity() const { return tables_.cosine_Td.defined() ? tables_.cosine_Td.size(0) : 0; }

 private:
  torch::Tensor inverse_frequency_;  ///< [d / 2]
  Tables tables_;                    ///< on the device asked for last
};

}  // namespace t2r::model
