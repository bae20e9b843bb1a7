#include "model/layers/linear.h"

#include "base/error.h"
#include "model/gpu_ops.h"

namespace t2r::model {

using torch::Tensor;

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
  linear.is_input_major = config.block.has_input_major_weights;
  if (linear.is_input_major) {
    require(names.prefixes.size() == 1 && has_bias,
            "input-major weights are not stacked, and have biases");
    linear.weight = parameters.add(weights[0], {inputs, names.outputs[0]}, group, true);
  } else {
    linear.weight = parameters.add_stacked(weights, names.outputs, {inputs}, group, true);
  }
  if (has_bias) linear.bias = parameters.add_stacked(biases, names.outputs, {}, group, false);
  return linear;
}

}  // namespace t2r::model
