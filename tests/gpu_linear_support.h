#pragma once

// What the tests of matrix products and of the layers made of them share.
#include <torch/types.h>

#include <cstdlib>
#include <utility>

#include "tests/gpu_support.h"

namespace t2r::ops {

using test::relative_error;
using testing::HasSubstr;

inline constexpr std::pair<at::ScalarType, double> kTypes[] = {{at::kBFloat16, 1e-2},
                                                               {at::kFloat, 2e-5}};

inline Tensor random(at::IntArrayRef sizes, at::ScalarType type, double scale = 1.0) {
  return at::randn(sizes, at::TensorOptions(at::kCUDA).dtype(at::kFloat)).mul(scale).to(type);
}

inline Tensor exact(const Tensor& tensor) {
  return tensor.detach().to(at::kDouble);
}

/// Leaves these epilogues to separate operations while it lives.
class Unfused {
 public:
  explicit Unfused(const char* epilogues) { setenv("T2R_UNFUSED", epilogues, 1); }
  ~Unfused() { unsetenv("T2R_UNFUSED"); }
};

}  // namespace t2r::ops
