#pragma once

#include <torch/types.h>

#include <algorithm>
#include <cmath>
#include <string>

#include "model/families/families.h"
#include "model/objectives/objectives.h"
#include "model/trainable.h"

namespace t2r::test {

/// Largest |actual - expected| over the largest |expected|, or over 0.1 where all is smaller (a
/// gradient that is zero by cancellation has no relative error); NaN counts as infinite.
inline double max_relative_error(const torch::Tensor& actual, const torch::Tensor& expected) {
  const torch::Tensor exact = expected.detach().to(torch::kFloat64);
  const double error = (actual.detach().to(torch::kFloat64) - exact).abs().max().item<double>();
  const double scale = std::max(0.1, exact.abs().max().item<double>());
  return error == error ? error / scale : INFINITY;
}

/// The text's loss, a sum in nats.
inline torch::Tensor text_loss(const model::Trainable& net,
                               const torch::Tensor& tokens_BT,
                               const torch::Tensor& targets_BT,
                               model::LossOptions options = {}) {
  options.objective = &model::kText;
  return net.loss({tokens_BT, targets_BT}, options).sum;
}

/// A small model of a family; grouped queries where it has them.
inline model::DecoderConfig tiny_config(const std::string& family) {
  model::DecoderConfig config = model::config_of(family, 3);
  config.vocab_size = 61;
  config.hidden_size = 24;
  config.num_heads = 4;
  config.num_kv_heads = config.block.has_free_heads ? 2 : 4;
  config.head_dim = 6;
  config.intermediate_size = 40;
  config.max_positions = 128;
  config.initializer_range = 0.2;  // large, so that an error anywhere shows
  return config;
}

}  // namespace t2r::test
