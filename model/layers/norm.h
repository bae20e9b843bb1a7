#pragma once

#include <torch/types.h>

#include <string>

#include "model/config.h"
#include "model/parameters.h"

namespace t2r::model {

/// LayerNorm or RMSNorm of the last dimension.
struct Norm {
  /// A residual stream after an addition, and its normalised form.
  struct Added {
    torch::Tensor sum;
    torch::Tensor normalised;
  };

  torch::Tensor weight;
  torch::Tensor bias;  ///< undefined for RMSNorm
  double eps = 1e-5;

  torch::Tensor operator()(const torch::Tensor& x) const;

  /// x + delta and its norm; on a GPU one pass.
  Added add(const torch::Tensor& x, const torch::Tensor& delta) const;
};

/// The norm of the config's kind over rows of `width`.
Norm add_norm(const DecoderConfig& config,
              const std::string& prefix,
              int64_t width,
              int64_t group,
              ParameterSet& parameters);

}  // namespace t2r::model
