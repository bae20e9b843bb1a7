#pragma once

#include <torch/types.h>

#include <algorithm>
#include <cmath>

#include "model/config.h"

namespace t2r::test {

/// Largest |actual - expected| over the largest |expected|, or over 0.1 where all is smaller (a
/// gradient that is zero by cancellation has no relative error); NaN counts as infinite.
inline double max_relative_error(const torch::Tensor& actual, const torch::Tensor& expected) {
  const torch::Tensor exact = expected.detach().to(torch::kFloat64);
  const double error = (actual.detach().to(torch::kFloat64) - exact).abs().max().item<double>();
  const double scale = std::max(0.1, exact.abs().max().item<double>());
  return error == error ? error / scale : INFINITY;
}

/// A small model of each family; grouped queries for Llama.
inline model::DecoderConfig tiny_config(model::Family family) {
  model::DecoderConfig config;
  const bool is_gpt2 = family == model::Family::kGpt2;
  config.family = family;
  config.vocab_size = 61;
  config.hidden_size = 24;
  config.num_layers = 3;
  config.num_heads = 4;
  config.num_kv_heads = is_gpt2 ? 4 : 2;
  config.head_dim = 6;
  config.intermediate_size = 40;
  config.max_positions = 128;
  config.activation = is_gpt2 ? model::Activation::kGeluTanh : model::Activation::kSilu;
  config.tied_embeddings = is_gpt2;
  config.attention_bias = is_gpt2;
  config.mlp_bias = is_gpt2;
  config.initializer_range = 0.2;  // large, so that an error anywhere shows
  return config;
}

}  // namespace t2r::test
