#include "model/layers/layers.h"

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

Tensor Linear::operator()(const Tensor& x) const {
  if (x.is_cuda()) return gpu::linear(x, weight, bias, is_input_major);
  if (!is_input_major) return at::linear(x, weight, bias);
  std::vector<int64_t> sizes = x.sizes().vec();
  sizes.back() = weight.size(1);
  return at::addmm(bias, x.reshape({-1, weight.size(0)}), weight).view(sizes);
}

void Linear::make_output_major() {
  if (!is_input_major) return;
  const torch::NoGradGuard no_grad;
  weight.set_data(weight.detach().t().contiguous());
  is_input_major = false;
}

int64_t Linear::most_step_rows(bool is_behind_norm) const {
  const auto is_aligned = [](const Tensor& tensor) {
    return !tensor.defined() || reinterpret_cast<uintptr_t>(tensor.const_data_ptr()) % 16 == 0;
  };
  const bool serves = !is_input_major && weight.is_cuda() &&
                      weight.scalar_type() == torch::kBFloat16 && is_aligned(weight) &&
                      is_aligned(bias);
  if (!serves) return 0;
  return gpu::most_step_rows(weight.size(1), is_behind_norm ? 2 : 0, is_behind_norm);
}

Linear add_linear(const DecoderConfig& config,
                  const LinearNames& names,
                  int64_t inputs,
                  bool has_bias,
                  int64_t group,
                  ParameterSet& parameters) {
  Linear linear;
  std::vector<std::string> weights, biases;
  for (const std::string& prefix : names.prefixes) {
    weights.push_back(prefix + ".weight");
    biases.push_back(prefix + ".bias");
  }
  linear.is_input_major = config.family == Family::kGpt2;
  if (linear.is_input_major) {
    require(names.prefixes.size() == 1 && has_bias, "GPT-2 has one biased projection per name");
    linear.weight = parameters.add(weights[0], {inputs, names.outputs[0]}, group, true);
  } else {
    linear.weight = parameters.add_stacked(weights, names.outputs, {inputs}, group, true);
  }
  if (has_bias) linear.bias = parameters.add_stacked(biases, names.outputs, {}, group, false);
  return linear;
}

Tensor Norm::operator()(const Tensor& x) const {
  if (x.is_cuda()) return gpu::norm(x, weight, bias, eps);
  if (bias.defined()) return at::layer_norm(x, {x.size(-1)}, weight, bias, eps);
  return rms_norm(x, weight, eps);
}

Norm::Added Norm::add(const Tensor& x, const Tensor& delta) const {
  if (x.is_cuda()) {
    const auto [sum, normalised] = gpu::add_norm(x, delta, weight, bias, eps);
    return {sum, normalised};
  }
  const Tensor sum = x + delta;
  return {sum, (*this)(sum)};
}

Norm add_norm(const DecoderConfig& config,
              const std::string& prefix,
              int64_t group,
              ParameterSet& parameters) {
  Norm norm;
  norm.eps = config.norm_eps;
  norm.weight = parameters.add(prefix + ".weight", {config.hidden_size}, group, false);
  if (config.family == Family::kGpt2) {
    norm.bias = parameters.add(prefix + ".bias", {config.hidden_size}, group, false);
  }
  return norm;
}

std::string block_prefix(const DecoderConfig& config, int64_t layer) {
  return concat(config.family == Family::kGpt2 ? "transformer.h." : "model.layers.", layer);
}

Mlp::Mlp(const DecoderConfig& config, int64_t layer, ParameterSet& parameters)
    : activation_(config.activation), is_gated_(config.family == Family::kLlama) {
  const std::string prefix = block_prefix(config, layer) + ".mlp.";
  const int64_t hidden = config.hidden_size, inner = config.intermediate_size, group = layer + 1;
  if (is_gated_) {
    up_ = add_linear(config,
                     {{prefix + "gate_proj", prefix + "up_proj"}, {inner, inner}},
                     hidden,
                     config.mlp_bias,
                     group,
                     parameters);
    down_ = add_linear(
        config, {{prefix + "down_proj"}, {hidden}}, inner, config.mlp_bias, group, parameters);
  } else {
    up_ = add_linear(config, {{prefix + "c_fc"}, {inner}}, hidden, true, group, parameters);
    down_ = add_linear(config, {{prefix + "c_proj"}, {hidden}}, inner, true, group, parameters);
  }
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
