#include "model/layers/norm.h"

#include "model/fused_ops.h"
#include "model/gpu_ops.h"

namespace t2r::model {

using torch::Tensor;

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
              int64_t width,
              int64_t group,
              ParameterSet& parameters) {
  Norm norm;
  norm.eps = config.norm_eps;
  norm.weight = parameters.add(prefix + ".weight", {width}, group, false);
  if (config.block.norm == NormKind::kLayer) {
    norm.bias = parameters.add(prefix + ".bias", {width}, group, false);
  }
  return norm;
}

}  // namespace t2r::model
