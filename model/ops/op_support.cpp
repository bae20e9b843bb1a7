#include "model/ops/op_support.h"

#include <ATen/Functions.h>

#include <algorithm>

namespace t2r::ops {

using at::Tensor;

Tensor readable_bf16(const Tensor& gradient) {
  const bool good = gradient.stride(3) == 1 && gradient.stride(0) % 8 == 0 &&
                    gradient.stride(1) % 8 == 0 && gradient.stride(2) % 8 == 0 &&
                    is_aligned(gradient);
  return good ? gradient : gradient.clone(at::MemoryFormat::Contiguous);
}

Tensor map_products(const Tensor& x, const Tensor& weight, const Tensor& bias, double scale) {
  const int64_t heads = std::max(x.size(2), weight.size(0));
  const auto spread = [&](const Tensor& tensor, int64_t dimension) {
    return tensor.size(dimension) == heads
               ? tensor
               : tensor.repeat_interleave(heads / tensor.size(dimension), dimension);
  };
  const Tensor x_HBTd = spread(x, 2).permute({2, 0, 1, 3}).flatten(1, 2);
  const Tensor y_HBTK = at::matmul(x_HBTd, spread(weight, 0).transpose(1, 2))
                            .mul(scale)
                            .add(spread(bias, 0).unsqueeze(1));
  return y_HBTK.unflatten(1, {x.size(0), x.size(1)}).permute({1, 2, 0, 3});
}

Tensor map_features(const Tensor& x, const Tensor& weight, const Tensor& bias, double scale) {
  if (x.scalar_type() == at::kBFloat16) {
    return map_features(x.to(at::kFloat), weight.to(at::kFloat), bias.to(at::kFloat), scale)
        .to(at::kBFloat16);
  }
  return at::relu(map_products(x, weight, bias, scale)).contiguous();
}

at::Tensor add_groups(const at::Tensor& gradient, int64_t dimension, int64_t heads) {
  if (!gradient.defined() || gradient.size(dimension) == heads) return gradient;
  return gradient.unflatten(dimension, {heads, gradient.size(dimension) / heads})
      .sum(dimension + 1);
}

}  // namespace t2r::ops
