// linear and mlp_gelu against float64, fused and (T2R_UNFUSED) in several steps.
#include <ATen/cuda/CUDAGraph.h>
#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <torch/csrc/autograd/autograd.h>
#include <torch/types.h>

#include <cstdlib>

#include "model/ops/linear_op.h"
#include "model/ops/mlp_op.h"
#include "tests/gpu_linear_support.h"
#include "tests/gpu_support.h"

namespace t2r::ops {
namespace {

using test::message_of;

/// Values and gradients of `body` for leaves, with gradient `grad`; leaves that do not require one
/// have an undefined gradient.
std::vector<Tensor> with_gradients(const std::function<Tensor()>& body,
                                   const std::vector<Tensor>& leaves,
                                   const Tensor& grad) {
  const Tensor y = body();
  std::vector<Tensor> wanted, results{y.detach()};
  for (const Tensor& leaf : leaves) {
    if (leaf.requires_grad()) wanted.push_back(leaf);
  }
  const auto gradients = torch::autograd::grad({y}, wanted, {grad});
  results.insert(results.end(), gradients.begin(), gradients.end());
  return results;
}

void expect_close(const std::vector<Tensor>& actual,
                  const std::vector<Tensor>& wanted,
                  double bar) {
  ASSERT_EQ(actual.size(), wanted.size());
  for (size_t i = 0; i < actual.size(); ++i) {
    ASSERT_EQ(actual[i].sizes(), wanted[i].sizes()) << i;
    EXPECT_LE(relative_error(actual[i], wanted[i]), bar) << (i == 0 ? "y" : "gradient ") << i;
  }
}

std::vector<Tensor> exact_leaves(const std::vector<Tensor>& leaves) {
  std::vector<Tensor> copies;
  for (const Tensor& leaf : leaves)
    copies.push_back(exact(leaf).requires_grad_(leaf.requires_grad()));
  return copies;
}

Tensor exact_linear(const Tensor& x, const Tensor& weight, const Tensor& bias, bool input_major) {
  const Tensor y = x.matmul(input_major ? weight : weight.t());
  return bias.defined() ? y + bias : y;
}

struct LinearCase {
  std::vector<int64_t> x_sizes;
  int64_t outputs;
  bool has_bias = true, x_needs = true, weight_needs = true, bias_needs = true;
};

void expect_linear(const LinearCase& c) {
  for (const auto& [type, bar] : kTypes) {
    for (const bool input_major : {false, true}) {
      SCOPED_TRACE(testing::Message()
                   << type << " x " << at::IntArrayRef(c.x_sizes) << " outputs " << c.outputs
                   << (c.has_bias ? " bias" : "") << (input_major ? " input major" : ""));
      at::manual_seed(3);
      const int64_t inputs = c.x_sizes.back();
      const double scale = 1.0 / std::sqrt(static_cast<double>(inputs));
      const Tensor x = random(c.x_sizes, type).requires_grad_(c.x_needs);
      const Tensor weight = (input_major ? random({inputs, c.outputs}, type, scale)
                                         : random({c.outputs, inputs}, type, scale))
                                .requires_grad_(c.weight_needs);
      std::vector<Tensor> leaves{x, weight};
      if (c.has_bias) leaves.push_back(random({c.outputs}, type).requires_grad_(c.bias_needs));
      std::vector<int64_t> y_sizes = c.x_sizes;
      y_sizes.back() = c.outputs;
      const Tensor grad = random(y_sizes, type);
      const auto bias = c.has_bias ? std::optional(leaves[2]) : std::nullopt;
      const auto actual = with_gradients(
          [&] {
            return linear(x, {weight, bias, input_major});
          },
          leaves,
          grad);
      const auto copies = exact_leaves(leaves);
      const auto wanted = with_gradients(
          [&] {
            return exact_linear(
                copies[0], copies[1], c.has_bias ? copies[2] : Tensor(), input_major);
          },
          copies,
          exact(grad));
      expect_close(actual, wanted, bar);
      for (const Tensor& tensor : actual) EXPECT_EQ(tensor.scalar_type(), type);
    }
  }
}

TEST(GpuLinear, AgreesWithFloat64) {
  for (const bool has_bias : {true, false}) {
    expect_linear({{4, 128, 256}, 768, has_bias});
    expect_linear({{64, 768}, 2304, has_bias});
  }
}

TEST(GpuLinear, OddSizes) {
  for (const bool has_bias : {true, false}) {
    expect_linear({{3, 11, 24}, 7, has_bias});
    expect_linear({{1, 64}, 64, has_bias});
    expect_linear({{64}, 40, has_bias});
    expect_linear({{5, 7}, 1, has_bias});
    expect_linear({{9, 1}, 3, has_bias});
    expect_linear({{2, 50, 33}, 50, has_bias});
  }
}

TEST(GpuLinear, OnlyTheGradientsThatAreAskedFor) {
  expect_linear({.x_sizes = {40, 64}, .outputs = 48, .weight_needs = false, .bias_needs = false});
  expect_linear({.x_sizes = {40, 64}, .outputs = 48, .x_needs = false});
  expect_linear({.x_sizes = {40, 64},
                 .outputs = 48,
                 .x_needs = false,
                 .weight_needs = false});  // the bias alone
  expect_linear({.x_sizes = {40, 64}, .outputs = 48, .bias_needs = false});
}

TEST(GpuLinear, InSeveralSteps) {
  const Unfused unfused("bias");
  expect_linear({{4, 32, 64}, 96});
}

TEST(GpuLinear, StridedInputAndExpandedGradient) {
  const Tensor x =
      random({6, 10, 128}, at::kBFloat16).slice(2, 0, 64).transpose(0, 1).requires_grad_(true);
  const Tensor weight = random({32, 64}, at::kBFloat16, 0.1).requires_grad_(true),
               bias = random({32}, at::kBFloat16).requires_grad_(true);
  const Tensor grad = at::ones({1}, x.options().requires_grad(false)).expand({10, 6, 32});
  const auto actual = with_gradients(
      [&] {
        return linear(x, {weight, bias, false});
      },
      {x, weight, bias},
      grad);
  const auto copies = exact_leaves({x, weight, bias});
  expect_close(actual,
               with_gradients([&] { return exact_linear(copies[0], copies[1], copies[2], false); },
                              copies,
                              exact(grad)),
               1e-2);
}

struct MlpCase {
  std::vector<int64_t> x_sizes;
  int64_t inner, outputs;
  std::vector<bool> needs = {true, true, true, true, true};
};

std::vector<Tensor> mlp_leaves(const MlpCase& c, at::ScalarType type, bool input_major) {
  at::manual_seed(5);
  const int64_t inputs = c.x_sizes.back();
  const auto weight = [&](int64_t in, int64_t out) {
    const double scale = 1.0 / std::sqrt(static_cast<double>(in));
    return input_major ? random({in, out}, type, scale) : random({out, in}, type, scale);
  };
  const std::vector<Tensor> leaves{random(c.x_sizes, type),
                                   weight(inputs, c.inner),
                                   random({c.inner}, type, 0.5),
                                   weight(c.inner, c.outputs),
                                   random({c.outputs}, type, 0.5)};
  for (size_t i = 0; i < leaves.size(); ++i) leaves[i].requires_grad_(c.needs[i]);
  return leaves;
}

Tensor mlp_of(const std::vector<Tensor>& leaves, bool input_major) {
  return mlp_gelu(
      leaves[0], {leaves[1], leaves[2], input_major}, {leaves[3], leaves[4], input_major});
}

void expect_mlp(const MlpCase& c) {
  for (const auto& [type, bar] : kTypes) {
    for (const bool input_major : {false, true}) {
      SCOPED_TRACE(testing::Message()
                   << type << " x " << at::IntArrayRef(c.x_sizes) << " inner " << c.inner
                   << " outputs " << c.outputs << (input_major ? " input major" : ""));
      const auto leaves = mlp_leaves(c, type, input_major), copies = exact_leaves(leaves);
      std::vector<int64_t> y_sizes = c.x_sizes;
      y_sizes.back() = c.outputs;
      const Tensor grad = random(y_sizes, type);
      const auto actual = with_gradients([&] { return mlp_of(leaves, input_major); }, leaves, grad);
      const auto wanted = with_gradients(
          [&] {
            const Tensor inner =
                at::gelu(exact_linear(copies[0], copies[1], copies[2], input_major), "tanh");
            return exact_linear(inner, copies[3], copies[4], input_major);
          },
          copies,
          exact(grad));
      expect_close(actual, wanted, bar);
      const at::NoGradGuard no_grad;  // another epilogue, without aux
      EXPECT_LE(relative_error(mlp_of(leaves, input_major), wanted[0]), bar);
    }
  }
}

TEST(GpuMlp, AgreesWithFloat64) {
  expect_mlp({{4, 64, 256}, 1024, 256});
  expect_mlp({{100, 768}, 3072, 768});
}

TEST(GpuMlp, OddSizes) {
  expect_mlp({{3, 5, 24}, 20, 24});
  expect_mlp({{1, 64}, 256, 64});
  expect_mlp({{17, 33}, 7, 9});
  expect_mlp({{64}, 32, 8});
}

TEST(GpuMlp, OnlyTheGradientsThatAreAskedFor) {
  expect_mlp({{40, 64}, 128, 64, {true, false, false, false, false}});
  expect_mlp({{40, 64}, 128, 64, {false, true, false, false, false}});
  expect_mlp({{40, 64}, 128, 64, {false, false, true, false, true}});
  expect_mlp({{40, 64}, 128, 64, {false, false, false, true, true}});
  expect_mlp({{40, 64}, 128, 64, {false, false, false, false, true}});
}

TEST(GpuMlp, InSeveralSteps) {
  for (const char* list : {"gelu", "dgelu", "bias,gelu,dgelu"}) {
    const Unfused unfused(list);
    expect_mlp({{50, 64}, 256, 64});
  }
}

TEST(GpuMlp, TwiceTheSameBits) {
  for (const auto type : {at::kBFloat16, at::kFloat}) {
    const auto leaves = mlp_leaves({{2048, 768}, 3072, 768}, type, true);
    const Tensor grad = random({2048, 768}, type);
    const auto first = with_gradients([&] { return mlp_of(leaves, true); }, leaves, grad);
    const auto second = with_gradients([&] { return mlp_of(leaves, true); }, leaves, grad);
    for (size_t i = 0; i < first.size(); ++i)
      EXPECT_TRUE(at::equal(first[i], second[i])) << type << " " << i;
  }
}

TEST(GpuMlp, GraphReplayEqualsEagerBitwise) {
  const auto leaves = mlp_leaves({{512, 768}, 3072, 768}, at::kBFloat16, true);
  const Tensor grad = random({512, 768}, at::kBFloat16),
               weight = random({768, 768}, at::kBFloat16, 0.03).requires_grad_(true);
  std::vector<Tensor> all = leaves;
  all.push_back(weight);
  const auto body = [&] { return linear(mlp_of(leaves, true), {weight, std::nullopt, false}); };
  c10::cuda::getCurrentCUDAStream().synchronize();
  const auto stream = c10::cuda::getStreamFromPool();
  const c10::cuda::CUDAStreamGuard guard(stream);
  const auto eager = with_gradients(body, all, grad);
  at::cuda::CUDAGraph graph;
  graph.capture_begin();
  const auto replayed = with_gradients(body, all, grad);
  graph.capture_end();
  for (const Tensor& tensor : replayed) tensor.fill_(std::nan(""));
  graph.replay();
  stream.synchronize();
  for (size_t i = 0; i < eager.size(); ++i) EXPECT_TRUE(at::equal(replayed[i], eager[i])) << i;
}

TEST(GpuLinear, BadInputIsRefusedByName) {
  const Tensor x = random({4, 64}, at::kBFloat16), weight = random({32, 64}, at::kBFloat16),
               bias = random({32}, at::kBFloat16);
  const auto refusal = [](const Tensor& x,
                          const Tensor& weight,
                          const std::optional<Tensor>& bias,
                          bool input_major = false) {
    return message_of([&] { linear(x, {weight, bias, input_major}); });
  };
  EXPECT_THAT(refusal(x.cpu(), weight, bias), HasSubstr("x is on cpu, allowed: cuda"));
  EXPECT_THAT(refusal(x.to(at::kHalf), weight, bias),
              HasSubstr("x has dtype Half, allowed: bfloat16, float32"));
  EXPECT_THAT(refusal(x, weight.to(at::kFloat), bias),
              HasSubstr("weight has dtype Float, x has BFloat16, allowed: the same"));
  EXPECT_THAT(refusal(x, weight.cpu(), bias),
              HasSubstr("weight is on cpu, x is on cuda:0, allowed: one device"));
  EXPECT_THAT(refusal(x, weight, bias.slice(0, 1)),
              HasSubstr("bias has shape [31], allowed: [32]"));
  EXPECT_THAT(refusal(x, weight, std::nullopt, true),
              HasSubstr("x has 64 columns, allowed: 32, the inputs of weight"));
  EXPECT_THAT(refusal(x, weight.view({-1}), bias),
              HasSubstr("weight has 1 dimensions, allowed: 2"));
}

TEST(GpuMlp, BadInputIsRefusedByName) {
  const auto good = mlp_leaves({{4, 64}, 128, 64}, at::kBFloat16, true);
  const auto refusal = [&](size_t which, const Tensor& bad) {
    auto leaves = good;
    leaves[which] = bad;
    return message_of([&] { mlp_of(leaves, true); });
  };
  EXPECT_THAT(refusal(0, good[0].slice(1, 1)),
              HasSubstr("x has 63 columns, allowed: 64, the inputs of w1"));
  EXPECT_THAT(refusal(2, good[2].to(at::kFloat)),
              HasSubstr("b1 has dtype Float, x has BFloat16, allowed: the same"));
  EXPECT_THAT(refusal(3, good[3].slice(0, 1)),
              HasSubstr("w2 has 127 inputs, allowed: 128, the outputs of w1"));
  EXPECT_THAT(refusal(4, good[4].slice(0, 1)), HasSubstr("b2 has shape [63], allowed: [64]"));
}

}  // namespace
}  // namespace t2r::ops
