#pragma once

#include <torch/types.h>

#include "model/config.h"
#include "model/layers/linear.h"
#include "model/layers/norm.h"
#include "model/parameters.h"

namespace t2r::model {

/// The feed-forward part of a block: plain or gated.
class Mlp {
 public:
  Mlp(const DecoderConfig& config, int64_t layer, ParameterSet& parameters);

  /// x_BTD -> [B, T, D].
  torch::Tensor forward(const torch::Tensor& x_BTD) const;

  /// x_BD + forward(norm(x_BD)) for one token of each sequence on a GPU, in two kernels.
  torch::Tensor step(const torch::Tensor& x_BD, const Norm& norm) const;

  void make_output_major();

  /// The most rows that step() takes; 0: none.
  int64_t most_step_rows() const;

  const Linear& output() const { return down_; }

 private:
  Activation activation_;
  bool is_gated_;
  Linear up_;  ///< gated: gate and up projections, stacked
  Linear down_;
};

}  // namespace t2r::model
