// Hedgehog's map, alone and with causal attention behind it, against float64 and autograd on the
// same device.
#include <ATen/cuda/CUDAGraph.h>
#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <torch/csrc/autograd/autograd.h>
#include <torch/types.h>

#include "model/ops/causal_op.h"
#include "model/ops/hedgehog_op.h"
#include "tests/gpu_support.h"

namespace t2r::ops {
namespace {

using test::message_of;
using test::relative_error;
using test::spread;
using testing::HasSubstr;
using Tensors = std::vector<Tensor>;

// phi is rounded once, d y before it enters products, and attention rounds its products' operands.
constexpr double kBf16Bar = 1e-2, kFloatBar = 2e-5;

double bar_of(at::ScalarType type) {
  return type == at::kBFloat16 ? kBf16Bar : kFloatBar;
}

struct Case {
  int64_t batch = 2, length = 37, query_heads = 4, key_heads = 4, maps = 4, head_size = 64,
          rows = 64;
  double v_mean = 0.0, sharp = 1.0;

  friend std::ostream& operator<<(std::ostream& out, const Case& c) {
    return out << "B" << c.batch << " T" << c.length << " H" << c.query_heads << "/" << c.key_heads
               << " M" << c.maps << " d" << c.head_size << " R" << c.rows << " v" << c.v_mean
               << " x" << c.sharp;
  }
};

struct Data {
  Tensor qkv, weight, bias;
  Case c;

  Tensor q() const { return qkv.narrow(2, 0, c.query_heads); }
  Tensor k() const { return qkv.narrow(2, c.query_heads, c.key_heads); }
  Tensor v() const { return qkv.narrow(2, c.query_heads + c.key_heads, c.key_heads); }
};

/// W is a part of the identity, as the model starts, and noise.
Data make_data(const Case& c, at::ScalarType type) {
  at::manual_seed(11);
  const auto options = at::TensorOptions(at::kCUDA).dtype(at::kFloat);
  Data data;
  data.c = c;
  data.qkv = at::randn({c.batch, c.length, c.query_heads + 2 * c.key_heads, c.head_size}, options);
  data.v().add_(c.v_mean);
  data.qkv = data.qkv.to(type);
  data.weight = (at::eye(c.rows, c.head_size, options) * c.sharp +
                 at::randn({c.maps, c.rows, c.head_size}, options) * 0.1)
                    .to(type);
  data.bias = (at::randn({c.maps, c.rows}, options) * 0.2).to(type);
  return data;
}

/// phi of x in whatever dtype the inputs have, by definition.
Tensor defined_map(const Tensor& x, const Tensor& weight, const Tensor& bias) {
  const int64_t heads = std::max(x.size(2), weight.size(0));
  const Tensor y = at::einsum("bthd,hrd->bthr", {spread(x, heads, 2), spread(weight, heads, 0)}) +
                   spread(bias, heads, 0);
  return at::cat({at::softmax(y, -1), at::softmax(-y, -1)}, -1);
}

/// The map's outputs and the gradients of q, k, W, b, given those of the outputs.
Tensors run_map(const Data& data, at::ScalarType type, bool by_definition) {
  const auto leaf = [&](const Tensor& tensor) { return tensor.detach().to(type).requires_grad_(); };
  // Strided views, as parts of a projection are; the definition's are copies.
  const Tensor qkv = leaf(data.qkv), weight = leaf(data.weight), bias = leaf(data.bias);
  const Tensor q = qkv.narrow(2, 0, data.c.query_heads),
               k = qkv.narrow(2, data.c.query_heads, data.c.key_heads);
  Tensor phi_q, phi_k;
  if (by_definition) {
    phi_q = defined_map(q, weight, bias), phi_k = defined_map(k, weight, bias);
  } else {
    std::tie(phi_q, phi_k) = hedgehog_features(q, k, weight, bias);
  }
  at::manual_seed(5);
  const auto gradient = [&](const Tensor& phi) {
    return at::randn(phi.sizes(), phi.options().dtype(at::kFloat))
        .to(data.qkv.scalar_type())
        .to(type);
  };
  const Tensor grad_q = gradient(phi_q), grad_k = gradient(phi_k);
  Tensors results{phi_q, phi_k};
  for (const Tensor& result :
       torch::autograd::grad({phi_q, phi_k}, {qkv, weight, bias}, {grad_q, grad_k}))
    results.push_back(result);
  return results;
}

/// o and the gradients of q, k, v, W, b.
Tensors run_attention(const Data& data, at::ScalarType type, bool by_definition) {
  const auto leaf = [&](const Tensor& tensor) { return tensor.detach().to(type).requires_grad_(); };
  const Tensor qkv = leaf(data.qkv), weight = leaf(data.weight), bias = leaf(data.bias);
  const Case& c = data.c;
  Tensor o;
  if (by_definition) {
    const Tensor phi_q = defined_map(qkv.narrow(2, 0, c.query_heads), weight, bias);
    const Tensor phi_k = spread(
        defined_map(qkv.narrow(2, c.query_heads, c.key_heads), weight, bias), c.query_heads, 2);
    const Tensor v =
        spread(qkv.narrow(2, c.query_heads + c.key_heads, c.key_heads), c.query_heads, 2);
    const Tensor weights = at::einsum("bthk,bshk->bhts", {phi_q, phi_k}).tril();
    o = at::einsum("bhts,bshd->bthd", {weights / (weights.sum(-1, true) + 1e-6), v});
  } else {
    o = causal_hedgehog({.qkv_BTHd = qkv,
                         .query_heads = c.query_heads,
                         .weight_MKd = weight,
                         .bias_MK = bias,
                         .rule = {.floor = 0.0, .added = 1e-6}});
  }
  at::manual_seed(6);
  const Tensor grad_o =
      at::randn(o.sizes(), o.options().dtype(at::kFloat)).to(data.qkv.scalar_type()).to(type);
  Tensors results{o};
  const auto gradients = torch::autograd::grad({o}, {qkv, weight, bias}, {grad_o});
  for (const Tensor& part :
       gradients[0].split_with_sizes({c.query_heads, c.key_heads, c.key_heads}, 2))
    results.push_back(part);
  results.push_back(gradients[1]);
  results.push_back(gradients[2]);
  return results;
}

void expect_close(const Tensors& actual,
                  const Tensors& exact,
                  double bar,
                  const std::vector<const char*>& names) {
  ASSERT_EQ(actual.size(), exact.size());
  for (size_t i = 0; i < actual.size(); ++i) {
    ASSERT_EQ(actual[i].sizes(), exact[i].sizes()) << names[i];
    EXPECT_LE(relative_error(actual[i], exact[i]), bar) << names[i];
  }
}

void expect_exact_map(const Case& c) {
  for (const auto type : {at::kBFloat16, at::kFloat}) {
    SCOPED_TRACE(testing::Message() << c << " " << type);
    const Data data = make_data(c, type);
    const Tensors actual = run_map(data, type, false);
    EXPECT_EQ(actual[0].scalar_type(), type);
    expect_close(actual,
                 run_map(data, at::kDouble, true),
                 bar_of(type),
                 {"phi(q)", "phi(k)", "d x", "d W", "d b"});
  }
}

TEST(HedgehogMapGpu, EqualsItsDefinitionForEverySize) {
  for (const int64_t rows : {1, 3, 8, 20, 24, 32, 33, 40, 56, 64}) expect_exact_map({.rows = rows});
  for (const int64_t head_size : {32, 128}) {
    for (const int64_t rows : {16, 32, 64})
      expect_exact_map({.head_size = head_size, .rows = std::min(rows, head_size)});
  }
  expect_exact_map({.head_size = 32, .rows = 64});
}

TEST(HedgehogMapGpu, EqualsItsDefinitionForEveryLength) {
  for (const int64_t length : {1, 15, 16, 17, 128, 129, 700})
    expect_exact_map({.batch = 1, .length = length});
  expect_exact_map({.batch = 130, .length = 1});
  expect_exact_map({.batch = 3, .length = 2000, .query_heads = 1, .key_heads = 1, .maps = 1});
}

TEST(HedgehogMapGpu, HeadsShareMapsAndMapsShareHeads) {
  expect_exact_map({.query_heads = 6, .key_heads = 2, .maps = 2});
  expect_exact_map({.query_heads = 6, .key_heads = 2, .maps = 6});
  expect_exact_map({.query_heads = 4, .key_heads = 2, .maps = 1});
  expect_exact_map({.length = 300, .query_heads = 9, .key_heads = 3, .maps = 9, .rows = 40});
}

TEST(HedgehogMapGpu, SharpFeaturesStayFiniteAndExact) {
  expect_exact_map({.length = 200, .sharp = 8.0});
  const Data data = make_data({.sharp = 400.0}, at::kBFloat16);
  for (const Tensor& result : run_map(data, at::kBFloat16, false))
    EXPECT_TRUE(result.isfinite().all().item<bool>());
}

TEST(HedgehogMapGpu, OddSizesGoByFloat32) {
  expect_exact_map({.head_size = 40, .rows = 40});
  expect_exact_map({.head_size = 128, .rows = 100});
}

TEST(HedgehogMapGpu, OneGradientAloneIsEnough) {
  const Data data = make_data({}, at::kBFloat16);
  const Tensor q = data.q().detach().requires_grad_(),
               weight = data.weight.detach().requires_grad_();
  const auto [phi_q, phi_k] = hedgehog_features(q, data.k(), weight, data.bias);
  const auto gradients =
      torch::autograd::grad({phi_q.slice(1, 0, 5).to(at::kFloat).square().sum()}, {q, weight});
  const Tensor exact_q = q.detach().to(at::kDouble).requires_grad_(),
               exact_weight = weight.detach().to(at::kDouble).requires_grad_();
  const Tensor exact_phi = defined_map(exact_q, exact_weight, data.bias.to(at::kDouble));
  const auto exact =
      torch::autograd::grad({exact_phi.slice(1, 0, 5).square().sum()}, {exact_q, exact_weight});
  // The gradient of a square is rounded once more, and much of it cancels.
  for (size_t i = 0; i < 2; ++i)
    EXPECT_LE(relative_error(gradients[i], exact[i]), 2 * kBf16Bar) << i;
}

void expect_exact_attention(const Case& c) {
  for (const auto type : {at::kBFloat16, at::kFloat}) {
    SCOPED_TRACE(testing::Message() << c << " " << type);
    const Data data = make_data(c, type);
    expect_close(run_attention(data, type, false),
                 run_attention(data, at::kDouble, true),
                 bar_of(type),
                 {"o", "d q", "d k", "d v", "d W", "d b"});
  }
}

TEST(CausalHedgehog, EqualsItsDefinition) {
  for (const int64_t length : {1, 37, 64, 65, 130, 512}) expect_exact_attention({.length = length});
  for (const double v_mean : {1.0, 4.0}) expect_exact_attention({.length = 300, .v_mean = v_mean});
  expect_exact_attention({.length = 200, .sharp = 4.0});
}

TEST(CausalHedgehog, EqualsItsDefinitionForEverySize) {
  for (const int64_t rows : {8, 20, 32, 36, 40, 44, 60, 64})
    expect_exact_attention({.length = 150, .rows = rows});
  expect_exact_attention({.length = 150, .head_size = 32, .rows = 32});
  expect_exact_attention({.length = 150, .head_size = 128, .rows = 32});
  expect_exact_attention({.length = 150, .head_size = 128, .rows = 64});
}

TEST(CausalHedgehog, HeadsShareMapsAndMapsShareHeads) {
  expect_exact_attention({.length = 100, .query_heads = 6, .key_heads = 2, .maps = 2});
  expect_exact_attention({.length = 100, .query_heads = 6, .key_heads = 2, .maps = 6});
  expect_exact_attention(
      {.length = 100, .query_heads = 9, .key_heads = 3, .maps = 9, .v_mean = 2.0});
  expect_exact_attention({.length = 100, .query_heads = 4, .key_heads = 1, .maps = 2});
}

TEST(CausalHedgehog, LongSequencesAreCutIntoSegments) {
  expect_exact_attention({.batch = 1, .length = 3000, .query_heads = 2, .key_heads = 2, .maps = 2});
}

/// Given features at 64 x 128, whose backward is a kernel of its own: with states and their
/// gradients.
TEST(CausalHedgehog, GivenFeaturesCarryStatesAndTheirGradients) {
  at::manual_seed(8);
  const auto options = at::TensorOptions(at::kCUDA).dtype(at::kFloat);
  for (const int64_t features : {72, 128}) {
    for (const auto& [query_heads, state_heads, value_heads] :
         {std::tuple{3, 3, 3}, std::tuple{4, 2, 1}}) {
      SCOPED_TRACE(testing::Message() << features << " features, heads " << query_heads << "/"
                                      << state_heads << "/" << value_heads);
      const auto phi = [&](int64_t heads) {
        return at::rand({40, 150, heads, features}, options).to(at::kBFloat16);
      };
      const Tensors inputs{phi(query_heads),
                           phi(state_heads),
                           (at::randn({40, 150, value_heads, 64}, options) + 2).to(at::kBFloat16),
                           at::randn({40, state_heads, features, 64}, options) * 5,
                           at::rand({40, state_heads, features}, options) * 20};
      const auto run = [&](bool exactly) {
        Tensors in;
        for (const Tensor& input : inputs)
          in.push_back((exactly ? input.to(at::kDouble) : input.detach().clone()).requires_grad_());
        Tensor o, s, z;
        if (exactly) {
          const Tensor phi_k = spread(in[1], query_heads, 2), v = spread(in[2], query_heads, 2);
          const Tensor weights = at::einsum("bthk,bshk->bhts", {in[0], phi_k}).tril();
          const Tensor den = (weights.sum(-1).transpose(1, 2) +
                              (in[0] * spread(in[4], query_heads, 1).unsqueeze(1)).sum(-1))
                                 .unsqueeze(-1);
          o = (at::einsum("bhts,bshd->bthd", {weights, v}) +
               at::einsum("bthk,bhkd->bthd", {in[0], spread(in[3], query_heads, 1)})) /
              (den + 1e-6);
          s = in[3] + at::einsum("bshk,bshd->bhkd", {in[1], spread(in[2], state_heads, 2)});
          z = in[4] + in[1].sum(1);
        } else {
          const CausalOutputs out =
              causal({in[0], in[1], in[2], {}, {}, {}, in[3], in[4], 1.0, 0.0, 1e-6});
          o = out.o_BTHd, s = out.s_BHKd, z = out.z_BHK;
        }
        at::manual_seed(9);
        Tensors results{o, s, z}, gradients;
        for (const Tensor& result : results)
          gradients.push_back(
              at::randn(result.sizes(), options).to(at::kBFloat16).to(result.scalar_type()));
        for (const Tensor& gradient : torch::autograd::grad(results, in, gradients))
          results.push_back(gradient);
        return results;
      };
      expect_close(run(false),
                   run(true),
                   kBf16Bar,
                   {"o", "S", "z", "d phi(q)", "d phi(k)", "d v", "d S", "d z"});
    }
  }
}

TEST(CausalHedgehog, GraphReplayEqualsEagerBitwise) {
  const Data data = make_data(
      {.batch = 20, .length = 300, .query_heads = 6, .key_heads = 2, .maps = 6}, at::kBFloat16);
  const auto stream = c10::cuda::getStreamFromPool();
  c10::cuda::getCurrentCUDAStream().synchronize();
  const c10::cuda::CUDAStreamGuard guard(stream);
  const auto body = [&] {
    const Tensor qkv = data.qkv.detach().requires_grad_(),
                 weight = data.weight.detach().requires_grad_(),
                 bias = data.bias.detach().requires_grad_();
    const Tensor o = causal_hedgehog({.qkv_BTHd = qkv,
                                      .query_heads = 6,
                                      .weight_MKd = weight,
                                      .bias_MK = bias,
                                      .rule = {.floor = 0.0, .added = 1e-6}});
    Tensors results{o};
    for (const Tensor& gradient :
         torch::autograd::grad({o}, {qkv, weight, bias}, {at::ones_like(o)}))
      results.push_back(gradient);
    const auto [phi_q, phi_k] = hedgehog_features(data.q(), data.k(), data.weight, data.bias);
    results.push_back(phi_q);
    results.push_back(phi_k);
    return results;
  };
  const auto expect_same_bits = [](const Tensors& a, const Tensors& b) {
    ASSERT_EQ(a.size(), b.size());
    for (size_t i = 0; i < a.size(); ++i) EXPECT_TRUE(at::equal(a[i], b[i])) << "result " << i;
  };
  const Tensors eager = body();
  for (int i = 0; i < 20; ++i) expect_same_bits(body(), eager);
  at::cuda::CUDAGraph graph;
  graph.capture_begin();
  const Tensors captured = body();
  graph.capture_end();
  for (const Tensor& result : captured) result.detach().fill_(7);
  graph.replay();
  stream.synchronize();
  expect_same_bits(captured, eager);
}

TEST(HedgehogMapGpu, WhatDoesNotFitIsRefusedByName) {
  const Data data = make_data({}, at::kBFloat16);
  const auto refused =
      [&](const Tensor& q, const Tensor& k, const Tensor& weight, const Tensor& bias) {
        return message_of([&] { hedgehog_features(q, k, weight, bias); });
      };
  EXPECT_THAT(refused(data.q().cpu(), data.k(), data.weight, data.bias),
              HasSubstr("q is on cpu, allowed: cuda"));
  EXPECT_THAT(refused(data.q().to(at::kHalf), data.k(), data.weight, data.bias),
              HasSubstr("q has dtype Half, allowed: bfloat16, float32, float64"));
  EXPECT_THAT(refused(data.q(), data.k().to(at::kFloat), data.weight, data.bias),
              HasSubstr("k has dtype Float"));
  EXPECT_THAT(refused(data.q(), data.k().slice(1, 1), data.weight, data.bias),
              HasSubstr("k has shape"));
  EXPECT_THAT(refused(data.q().select(0, 0), data.k(), data.weight, data.bias),
              HasSubstr("q has 3 dimensions, allowed: 4"));
  EXPECT_THAT(refused(data.q(), data.k(), data.weight.slice(2, 1), data.bias),
              HasSubstr("weight has shape"));
  EXPECT_THAT(refused(data.q(), data.k(), data.weight, data.bias.slice(1, 1)),
              HasSubstr("bias has shape"));
  EXPECT_THAT(refused(data.q(), data.k(), data.weight.slice(0, 0, 3), data.bias.slice(0, 0, 3)),
              HasSubstr("q has 4 heads for 3 maps"));
  EXPECT_THAT(refused(data.q().slice(1, 0, 0), data.k().slice(1, 0, 0), data.weight, data.bias),
              HasSubstr("q has size 0 in dimension 1"));
  EXPECT_THAT(message_of([&] {
                causal_hedgehog({.qkv_BTHd = data.qkv,
                                 .query_heads = 5,
                                 .weight_MKd = data.weight,
                                 .bias_MK = data.bias,
                                 .rule = {.floor = 0.0, .added = 1e-6}});
              }),
              HasSubstr("an even number of others"));
  EXPECT_THAT(message_of([&] {
                causal_hedgehog({.qkv_BTHd = data.qkv,
                                 .query_heads = 4,
                                 .weight_MKd = data.weight,
                                 .bias_MK = data.bias,
                                 .rule = {.floor = 0.0, .added = 0.0}});
              }),
              HasSubstr("floor is 0"));
}

}  // namespace
}  // namespace t2r::ops
