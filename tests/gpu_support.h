#pragma once

#include <ATen/Functions.h>
#include <c10/util/Exception.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <functional>
#include <string>
#include <vector>

#include "model/ops/op_support.h"

/// What the tests of the GPU operators share.
namespace t2r::test {

/// |actual - exact| / |exact|; where all is zero but for rounding, |actual - exact| a value. NaN
/// counts as infinite.
inline double relative_error(const at::Tensor& actual, const at::Tensor& exact) {
  const at::Tensor wanted = exact.detach().to(at::kDouble);
  const double error = (actual.detach().to(at::kDouble) - wanted).norm().item<double>();
  const double typical = 0.01 * std::sqrt(static_cast<double>(exact.numel()));
  return error == error ? error / std::max(wanted.norm().item<double>(), typical) : INFINITY;
}

/// Every head of `dimension` as often as makes `heads` of them.
inline at::Tensor spread(const at::Tensor& tensor, int64_t heads, int64_t dimension) {
  return tensor.repeat_interleave(heads / tensor.size(dimension), dimension);
}

/// The message of the c10::Error that `body` throws.
inline std::string message_of(const std::function<void()>& body) {
  try {
    body();
  } catch (const c10::Error& error) {
    return error.what_without_backtrace();
  }
  return "nothing was thrown";
}

/// Every gradient, in float64, along a random direction against central differences of `loss`.
inline void expect_numerical_gradients(
    const std::vector<at::Tensor>& leaves,
    const std::vector<at::Tensor>& gradients,
    const std::vector<std::string>& names,
    const std::function<double(const std::vector<at::Tensor>&)>& loss) {
  for (size_t i = 0; i < leaves.size(); ++i) {
    const at::Tensor direction = at::randn_like(leaves[i]);
    const double h = 1e-6;
    std::vector<at::Tensor> moved = leaves;
    moved[i] = leaves[i] + direction * h;
    const double up = loss(moved);
    moved[i] = leaves[i] - direction * h;
    const double wanted = (up - loss(moved)) / (2 * h);
    const double actual = (gradients[i] * direction).sum().item<double>();
    EXPECT_NEAR(actual, wanted, 1e-6 * std::max(1.0, std::abs(wanted))) << names[i];
  }
}

/// Whether a block that needs `bytes` of shared memory is too large for this GPU, or for what
/// T2R_CUDA_KERNELS leaves of it. If so, `body` has to be refused.
inline bool is_refused_for_memory(int64_t bytes, const std::function<void()>& body) {
  if (bytes <= ops::current_device().shared_bytes) return false;
  EXPECT_THAT(message_of(body),
              testing::HasSubstr("bytes of shared memory a block, allowed on this GPU: "));
  return true;
}

}  // namespace t2r::test
