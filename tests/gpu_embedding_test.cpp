// The embedding and its gradient against float64 and autograd on the same device.
#include <ATen/cuda/CUDAGraph.h>
#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <torch/csrc/autograd/autograd.h>
#include <torch/types.h>

#include "model/ops/embedding_op.h"
#include "tests/gpu_support.h"
#include "tests/gpu_training_support.h"

namespace t2r::ops {
namespace {

using test::message_of;

void expect_exact_embedding(const Tensor& tokens,
                            int64_t vocabulary,
                            int64_t width,
                            bool positions) {
  for (const auto type : {at::kBFloat16, at::kFloat}) {
    SCOPED_TRACE(testing::Message()
                 << type << " tokens " << tokens.sizes() << " V" << vocabulary << " D" << width);
    at::manual_seed(9);
    const Tensor weight = random({vocabulary, width}, type),
                 position = random({tokens.size(-1), width}, type);
    std::vector<int64_t> sizes = tokens.sizes().vec();
    sizes.push_back(width);
    const Tensor grad = random(sizes, type) + 0.5;
    Tensors inputs{leaf(weight)}, exact_inputs{exact_leaf(weight)};
    if (positions) inputs.push_back(leaf(position)), exact_inputs.push_back(exact_leaf(position));
    const Tensor out =
        ops::embedding(inputs[0], tokens, positions ? std::optional(inputs[1]) : std::nullopt);
    Tensor exact = exact_inputs[0].index_select(0, tokens.reshape({-1})).view(sizes);
    if (positions) exact = exact + exact_inputs[1];
    const Tensors actual = values_and_gradients({out}, inputs, {grad}),
                  wanted = values_and_gradients({exact}, exact_inputs, {grad});
    for (const Tensor& result : actual) EXPECT_EQ(result.scalar_type(), type);
    expect_close(actual, wanted, bar_of(type));
  }
}

Tensor random_tokens(at::IntArrayRef sizes, int64_t vocabulary) {
  return at::randint(vocabulary, sizes, at::TensorOptions(at::kCUDA).dtype(at::kLong));
}

TEST(GpuEmbedding, AgreesWithFloat64) {
  for (const int64_t width : {1, 7, 8, 12, 100, 768, 1031}) {
    for (const bool positions : {true, false})
      expect_exact_embedding(random_tokens({3, 50}, 40), 40, width, positions);
  }
  expect_exact_embedding(random_tokens({1, 1}, 5), 5, 64, true);
  expect_exact_embedding(random_tokens({17}, 5), 5, 64, true);
  expect_exact_embedding(random_tokens({8, 512}, 50257), 50257, 64, true);
}

TEST(GpuEmbedding, RepeatedTokens) {
  for (const int64_t count : {63, 64, 65, 128, 129, 200, 1000, 20000})
    expect_exact_embedding(at::full({1, count}, 2, random_tokens({1}, 2).options()), 4, 72, false);
  for (const int64_t vocabulary : {2, 3, 10, 70})
    expect_exact_embedding(random_tokens({6, 1001}, vocabulary), vocabulary, 72, true);
  // Runs of every length between 60 and 70, 120 and 135: they begin anywhere in the sorted order.
  Tensors runs;
  for (int64_t token = 0; token < 27; ++token) {
    runs.push_back(
        at::full({token < 11 ? 60 + token : 109 + token}, token, random_tokens({1}, 2).options()));
  }
  const Tensor tokens = at::cat(runs);
  expect_exact_embedding(
      tokens.index_select(0, at::randperm(tokens.numel(), tokens.options())).view({1, -1}),
      27,
      40,
      false);
}

TEST(GpuEmbedding, TokenOutsideTheVocabularyGivesNanAndNoGradient) {
  const Tensor weight = leaf(random({10, 16}, at::kFloat));
  Tensor tokens = random_tokens({1, 6}, 10);
  tokens.slice(1, 1, 2).fill_(10);
  tokens.slice(1, 4, 5).fill_(-1);
  const Tensor out = ops::embedding(weight, tokens);
  EXPECT_EQ(out.isnan().sum().item<int64_t>(), 2 * 16);
  const Tensor grad = torch::autograd::grad({out}, {weight}, {at::ones_like(out)})[0];
  EXPECT_EQ(grad.sum().item<double>(), 4 * 16.0);
}

TEST(GpuEmbedding, Repeatable) {
  const Tensor weight = random({300, 768}, at::kBFloat16),
               position = random({512, 768}, at::kBFloat16),
               grad = random({4, 512, 768}, at::kBFloat16);
  const Tensor tokens = at::where(random_tokens({4, 512}, 3) > 0,
                                  random_tokens({4, 512}, 300),
                                  at::zeros({}, random_tokens({1}, 2).options()));
  expect_repeatable([&] {
    const Tensor w = leaf(weight), p = leaf(position);
    return values_and_gradients({ops::embedding(w, tokens, p)}, {w, p}, {grad});
  });
}

TEST(GpuEmbedding, BadInputIsRefusedByName) {
  const Tensor weight = random({10, 16}, at::kBFloat16), tokens = random_tokens({2, 6}, 10),
               position = random({6, 16}, at::kBFloat16);
  EXPECT_THAT(message_of([&] { ops::embedding(weight.cpu(), tokens); }),
              HasSubstr("embedding: weight is on cpu, allowed: cuda"));
  EXPECT_THAT(message_of([&] { ops::embedding(weight, tokens.cpu()); }),
              HasSubstr("tokens is on cpu, allowed: cuda:0"));
  EXPECT_THAT(message_of([&] { ops::embedding(weight, tokens.to(at::kInt)); }),
              HasSubstr("tokens has dtype Int, allowed: Long"));
  EXPECT_THAT(message_of([&] { ops::embedding(weight, tokens, position.slice(0, 1)); }),
              HasSubstr("position has shape [5, 16], allowed: [6, 16]"));
  EXPECT_THAT(message_of([&] { ops::embedding(weight, tokens, position.to(at::kFloat)); }),
              HasSubstr("position has dtype Float, allowed: BFloat16"));
}

}  // namespace
}  // namespace t2r::ops
