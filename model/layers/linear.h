#pragma once

#include <torch/types.h>

#include <string>
#include <vector>

#include "model/config.h"
#include "model/parameters.h"

namespace t2r::model {

/// y = x W + b, in the orientation of the family's checkpoints.
struct Linear {
  torch::Tensor weight;     ///< [out, in], or input-major [in, out]
  torch::Tensor bias = {};  ///< [out], or undefined
  bool is_input_major = false;

  /// x [.., in] -> [.., out].
  torch::Tensor operator()(const torch::Tensor& x) const;

  /// The weight as [out, in], a view.
  torch::Tensor output_major() const { return is_input_major ? weight.t() : weight; }

  /// Copies an input-major weight into the other orientation; files can no longer be written.
  void make_output_major();

  /// The most rows for which gpu::step_linear takes this projection as it is; 0: none. Behind a
  /// norm it may be anything, elsewhere nothing but a sum follows it.
  int64_t most_step_rows(bool is_behind_norm) const;
};

/// One projection with its Hugging Face names; several names are projections of one input, stacked.
struct LinearNames {
  std::vector<std::string> prefixes;  ///< e.g. model.layers.0.self_attn.q_proj
  std::vector<int64_t> outputs;       ///< output width of each
};

Linear add_linear(const DecoderConfig& config,
                  const LinearNames& names,
                  int64_t inputs,
                  bool has_bias,
                  int64_t group,
                  ParameterSet& parameters);

}  // namespace t2r::model
