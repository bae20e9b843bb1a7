#include "model/layers/mlp.h"

#include <algorithm>

#include "base/error.h"
#include "model/fused_ops.h"
#include "model/gpu_ops.h"

namespace t2r::model {
namespace {

using torch::Tensor;

Tensor activate(Activation activation, const Tensor& x) {
  switch (activation) {
    case Activation::kGeluTanh:
      return at::gelu(x, "tanh");
    case Activation::kGeluErf:
      return at::gelu(x);
    case Activation::kRelu:
      return at::relu(x);
    case Activation::kSilu:
      return at::silu(x);
  }
  throw ContractError("activation out of range");
}

}  // namespace

Mlp::Mlp(const DecoderConfig& config, int64_t layer, ParameterSet& parameters)
    : activation_(config.block.activation), is_gated_(config.block.has_gated_mlp) {
  const std::string prefix = concat(config.names.block(layer), config.names.mlp);
  const int64_t hidden = config.hidden_size, inner = config.intermediate_size, group = layer + 1;
  LinearNames up;
  for (size_t i = 0; i < (is_gated_ ? 2 : 1); ++i) {
    up.prefixes.push_back(concat(prefix, config.names.up[i]));
    up.outputs.push_back(inner);
  }
  up_ = add_linear(config, up, hidden, config.block.mlp_bias, group, parameters);
  down_ = add_linear(config,
                     {{concat(prefix, config.names.down)}, {hidden}},
                     inner,
                     config.block.mlp_bias,
                     group,
                     parameters);
}

Tensor Mlp::forward(const Tensor& x_BTD) const {
  if (x_BTD.is_cuda() && !is_gated_ && activation_ == Activation::kGeluTanh && up_.bias.defined()) {
    return gpu::mlp_gelu(x_BTD, up_.weight, up_.bias, down_.weight, down_.bias, up_.is_input_major);
  }
  const Tensor inner = up_(x_BTD);
  if (!is_gated_) return down_(activate(activation_, inner));
  if (activation_ == Activation::kSilu) return down_(swiglu(inner));
  const std::vector<Tensor> halves = inner.chunk(2, -1);
  return down_(activate(activation_, halves[0]) * halves[1]);
}

Tensor Mlp::step(const Tensor& x_BD, const Norm& norm) const {
  using Activation = gpu::StepLinear::Activation;
  const Tensor inner =
      gpu::step_linear({.x_NI = x_BD,
                        .weight_OI = up_.weight,
                        .bias = up_.bias,
                        .norm_weight = norm.weight,
                        .norm_bias = norm.bias,
                        .eps = norm.eps,
                        .activation = is_gated_ ? Activation::kSwiglu : Activation::kGelu});
  return gpu::step_linear(
      {.x_NI = inner, .weight_OI = down_.weight, .bias = down_.bias, .residual_NO = x_BD});
}

void Mlp::make_output_major() {
  up_.make_output_major();
  down_.make_output_major();
}

int64_t Mlp::most_step_rows() const {
  if (activation_ != (is_gated_ ? Activation::kSilu : Activation::kGeluTanh)) return 0;
  return std::min(up_.most_step_rows(/*is_behind_norm=*/true),
                  down_.most_step_rows(/*is_behind_norm=*/false));
}

}  // namespace t2r::model
