#pragma once

// Oracles and comparisons that the tests of the training step's operators share.
#include <gtest/gtest.h>
#include <torch/csrc/autograd/autograd.h>
#include <torch/types.h>

#include <functional>
#include <vector>

#include "tests/gpu_support.h"

namespace t2r::ops {

using test::relative_error;
using testing::HasSubstr;
using Tensors = std::vector<Tensor>;

// One rounding of an output is 2^-9 in bfloat16; sums of rounded terms stay below two of them.
inline constexpr double kBf16Bar = 5e-3, kFloatBar = 2e-5;

inline double bar_of(at::ScalarType type) {
  return type == at::kBFloat16 ? kBf16Bar : kFloatBar;
}

inline Tensor random(at::IntArrayRef sizes, at::ScalarType type) {
  return at::randn(sizes, at::TensorOptions(at::kCUDA).dtype(at::kFloat)).to(type);
}

inline Tensor leaf(const Tensor& tensor) {
  return tensor.detach().clone().requires_grad_();
}
inline Tensor exact_leaf(const Tensor& tensor) {
  return tensor.detach().to(at::kDouble).requires_grad_();
}

/// The outputs, then the gradients of the inputs, given those of the outputs (undefined: that
/// output is not used).
inline Tensors values_and_gradients(const Tensors& outputs,
                                    const Tensors& inputs,
                                    const Tensors& output_gradients) {
  Tensors used, gradients, results = outputs;
  for (size_t i = 0; i < outputs.size(); ++i) {
    if (!output_gradients[i].defined()) continue;
    used.push_back(outputs[i]);
    gradients.push_back(output_gradients[i].to(outputs[i].scalar_type()));
  }
  for (const Tensor& gradient : torch::autograd::grad(used,
                                                      inputs,
                                                      gradients,
                                                      /*retain_graph=*/std::nullopt,
                                                      /*create_graph=*/false,
                                                      /*allow_unused=*/true)) {
    results.push_back(gradient);
  }
  return results;
}

/// A shape and a dtype, then values: what is not defined in one may be zero in the other.
inline void expect_close(const Tensors& actual, const Tensors& exact, double bar) {
  ASSERT_EQ(actual.size(), exact.size());
  for (size_t i = 0; i < actual.size(); ++i) {
    if (!exact[i].defined() || !actual[i].defined()) {
      const Tensor& other = exact[i].defined() ? exact[i] : actual[i];
      EXPECT_TRUE(!other.defined() || other.abs().max().item<double>() == 0.0) << "result " << i;
      continue;
    }
    ASSERT_EQ(actual[i].sizes(), exact[i].sizes()) << "result " << i;
    EXPECT_LE(relative_error(actual[i], exact[i]), bar) << "result " << i;
  }
}

inline void expect_same_bits(const Tensors& a, const Tensors& b) {
  ASSERT_EQ(a.size(), b.size());
  for (size_t i = 0; i < a.size(); ++i) EXPECT_TRUE(at::equal(a[i], b[i])) << "result " << i;
}

/// `body`, eagerly twice and in a CUDA graph: the same bits.
inline void expect_repeatable(const std::function<Tensors()>& body) {
  const auto stream = c10::cuda::getStreamFromPool();
  c10::cuda::getCurrentCUDAStream().synchronize();
  const c10::cuda::CUDAStreamGuard guard(stream);
  const Tensors eager = body();
  expect_same_bits(body(), eager);
  at::cuda::CUDAGraph graph;
  graph.capture_begin();
  const Tensors captured = body();
  graph.capture_end();
  for (const Tensor& result : captured) result.detach().fill_(7);
  graph.replay();
  stream.synchronize();
  expect_same_bits(captured, eager);
}

}  // namespace t2r::ops
