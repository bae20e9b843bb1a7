// Linear cross-attention on the GPU against a float64 oracle, on any GPU since Ampere.
#include <ATen/cuda/CUDAGraph.h>
#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <torch/csrc/autograd/autograd.h>
#include <torch/types.h>

#include "model/kernels/cuda/cross/cross_simt.h"
#include "model/ops/cross_op.h"
#include "tests/gpu_support.h"

namespace t2r::ops {
namespace {

using test::message_of;
using test::relative_error;
using test::spread;
using testing::HasSubstr;

struct Case {
  int64_t batch = 2, length = 130, source_length = 200, query_heads = 2, state_heads = 2,
          key_heads = 2, value_heads = 2, head_size = 64, features = 32;
  bool map = true, mask = false, fused_kv = false, dead = false, absolute = true;
  bool signed_queries =
      false;  ///< given features: phi(q) of odd tokens is negative, and so is phi(q) . z
  bool faint_queries =
      false;  ///< given features: phi(q) of odd tokens is so small that the floor decides
  double v_mean = 0.0, scale = 0.125, floor = 0.01, added = 0.0;

  friend std::ostream& operator<<(std::ostream& out, const Case& c) {
    return out << "B" << c.batch << " T" << c.length << " S" << c.source_length << " H"
               << c.query_heads << "/" << c.state_heads << "/" << c.key_heads << "/"
               << c.value_heads << " d" << c.head_size << " k" << c.features
               << (c.map ? " map" : " features") << (c.mask ? " mask" : "")
               << (c.fused_kv ? " fused" : "") << (c.absolute ? "" : " no abs")
               << (c.signed_queries ? " signed" : "") << (c.faint_queries ? " faint" : "") << " v"
               << c.v_mean;
  }
};

/// The same computation, written plainly.
Tensor oracle(const CrossInputs& in, int64_t state_heads) {
  const int64_t heads = in.q_BTHd.size(2);
  Tensor phi_q = in.q_BTHd, phi_k = in.k_BSHd;
  if (in.weight_MKd.defined()) {
    phi_q = at::relu(at::einsum("bthd,hkd->bthk", {phi_q, spread(in.weight_MKd, heads, 0)})
                         .mul(in.scale)
                         .add(spread(in.bias_MK, heads, 0)));
    phi_k = at::relu(at::einsum("bshd,hkd->bshk", {spread(phi_k, state_heads, 2), in.weight_MKd})
                         .add(in.bias_MK));
  }
  if (in.source_mask_BS.defined())
    phi_k = phi_k * in.source_mask_BS.to(phi_k.scalar_type()).unsqueeze(2).unsqueeze(3);
  const Tensor s =
      spread(at::einsum("bshk,bshd->bhkd", {phi_k, spread(in.v_BSHd, state_heads, 2)}), heads, 1);
  const Tensor z = spread(phi_k.sum(1), heads, 1);
  const Tensor n = at::einsum("bthk,bhk->bth", {phi_q, z});
  const Tensor denominator =
      (in.absolute ? n.abs() : n).add(in.rule.added).clamp_min(in.rule.floor);
  return at::einsum("bthk,bhkd->bthd", {phi_q, s}) / denominator.unsqueeze(3);
}

struct Problem {
  CrossInputs inputs;
  std::vector<Tensor> leaves;
  std::vector<std::string> names;
  Tensor grad_o;
};

Problem make_problem(const Case& c, at::ScalarType type) {
  at::manual_seed(7);
  const auto options = at::TensorOptions(at::kCUDA).dtype(at::kFloat);
  const auto random = [&](at::IntArrayRef sizes) { return at::randn(sizes, options); };
  Problem p;
  CrossInputs& in = p.inputs;
  if (c.map) {
    in.q_BTHd = random({c.batch, c.length, c.query_heads, c.head_size}).to(type);
    in.k_BSHd = random({c.batch, c.source_length, c.key_heads, c.head_size}).to(type);
    in.weight_MKd = random({c.state_heads, c.features, c.head_size})
                        .div(std::sqrt(double(c.head_size)))
                        .to(type);
    // Few features may all be off, and then the floor decides: rounding would flip it, so they are
    // kept on.
    in.bias_MK = random({c.state_heads, c.features})
                     .abs()
                     .mul(0.1)
                     .add(c.dead            ? -20.0
                          : c.features < 16 ? 0.5
                                            : 0.05)
                     .to(type);
  } else {
    Tensor phi_q =
        at::relu(random({c.batch, c.length, c.query_heads, c.features}).add(0.5)).add(0.05);
    const Tensor odd = at::arange(c.length, options).remainder(2).view({1, c.length, 1, 1});
    if (c.signed_queries) phi_q = phi_q * (1.0 - 2.0 * odd);
    if (c.faint_queries) phi_q = phi_q * (1.0 - odd * (1.0 - 1e-4));
    in.q_BTHd = phi_q.to(type);
    in.k_BSHd = at::relu(random({c.batch, c.source_length, c.state_heads, c.features}).add(0.5))
                    .add(0.05)
                    .to(type);
  }
  in.v_BSHd = random({c.batch, c.source_length, c.value_heads, c.head_size}).add(c.v_mean).to(type);
  if (c.fused_kv) {
    const auto parts =
        at::cat({in.k_BSHd, in.v_BSHd}, 2).split_with_sizes({c.key_heads, c.value_heads}, 2);
    in.k_BSHd = parts[0], in.v_BSHd = parts[1];
  }
  if (c.mask) {  // sentences of different lengths, and holes
    const Tensor lengths =
        at::linspace(c.source_length, 1 + c.source_length / 3, c.batch, options).unsqueeze(1);
    const Tensor position = at::arange(c.source_length, options).unsqueeze(0);
    in.source_mask_BS = (position < lengths).logical_and(position.remainder(7) != 3);
  }
  in.scale = c.scale, in.rule.floor = c.floor, in.rule.added = c.added, in.absolute = c.absolute;
  p.leaves = {in.q_BTHd.detach(), in.k_BSHd.detach(), in.v_BSHd.detach()};
  p.names = {"q", "k", "v"};
  if (c.map) {
    p.leaves.insert(p.leaves.end(), {in.weight_MKd, in.bias_MK});
    p.names.insert(p.names.end(), {"weight", "bias"});
  }
  p.grad_o = random({c.batch, c.length, c.query_heads, c.head_size}).to(type);
  return p;
}

/// `inputs` with `leaves` in their places.
CrossInputs with_leaves(CrossInputs in, const std::vector<Tensor>& leaves) {
  in.q_BTHd = leaves[0], in.k_BSHd = leaves[1], in.v_BSHd = leaves[2];
  if (leaves.size() > 3) in.weight_MKd = leaves[3], in.bias_MK = leaves[4];
  return in;
}

struct Result {
  Tensor o;
  std::vector<Tensor> gradients;
};

template <class Function>
Result run(const Problem& p, bool exact, const Function& function) {
  const auto as = [&](const Tensor& tensor) { return exact ? tensor.to(at::kDouble) : tensor; };
  std::vector<Tensor> leaves;
  for (const Tensor& leaf : p.leaves) leaves.push_back(as(leaf).detach().requires_grad_());
  Result result;
  result.o = function(with_leaves(p.inputs, leaves));
  result.gradients = torch::autograd::grad({result.o}, leaves, {as(p.grad_o)});
  return result;
}

void expect_exact(const Case& c, at::ScalarType type, double bar) {
  SCOPED_TRACE(testing::Message() << c << " " << type);
  const Problem p = make_problem(c, type);
  const auto with_ours = [&] {
    return run(p, false, [](const CrossInputs& in) { return cross(in); });
  };
  const kernels::cuda::Shape shape{.head_size = static_cast<int>(c.head_size),
                                   .feature_size = static_cast<int>(c.features)};
  if (type == at::kDouble &&
      test::is_refused_for_memory(
          kernels::cuda::cross_simt_bytes(shape, /*backward=*/true, sizeof(double)), with_ours))
    return;
  const Result actual = with_ours();
  const Result exact =
      run(p, true, [&](const CrossInputs& in) { return oracle(in, c.state_heads); });
  ASSERT_EQ(actual.o.sizes(), exact.o.sizes());
  EXPECT_EQ(actual.o.scalar_type(), type);
  EXPECT_LE(relative_error(actual.o, exact.o), bar) << "o";
  for (size_t i = 0; i < p.names.size(); ++i) {
    ASSERT_EQ(actual.gradients[i].sizes(), exact.gradients[i].sizes());
    EXPECT_LE(relative_error(actual.gradients[i], exact.gradients[i]), bar)
        << "gradient of " << p.names[i];
  }
}

void expect_exact(const Case& c) {
  expect_exact(c, at::kBFloat16, 1e-2);
  expect_exact(c, at::kFloat, 2e-5);
  expect_exact(c, at::kDouble, 1e-9);
}

TEST(GpuCross, AgreesWithTheOracle) {
  expect_exact({});
  expect_exact({.map = false});
}

TEST(GpuCross, LengthsThatFillNoChunk) {
  for (const int64_t length : {1, 63, 65, 128, 129, 517}) {
    expect_exact({.length = length, .source_length = 77});
    expect_exact({.length = 77, .source_length = length + 1});
  }
  expect_exact({.length = 1, .source_length = 300, .map = false});
}

TEST(GpuCross, OneSourceTokenGivesItsValue) {
  for (const auto& [type, bar] : {std::pair{at::kBFloat16, 1e-2},
                                  std::pair{at::kFloat, 2e-5},
                                  std::pair{at::kDouble, 1e-9}}) {
    const Problem p = make_problem({.source_length = 1}, type);
    EXPECT_LE(relative_error(cross(p.inputs), p.inputs.v_BSHd.expand({2, 130, 2, 64})), bar)
        << type;
  }
}

TEST(GpuCross, ValuesFarFromZero) {
  for (const double mean : {1.0, 4.0}) {
    expect_exact({.length = 517, .source_length = 333, .v_mean = mean});
    expect_exact(
        {.batch = 1, .length = 4096, .source_length = 5000, .v_mean = mean}, at::kBFloat16, 1e-2);
    expect_exact({.batch = 1,
                  .length = 700,
                  .source_length = 4096,
                  .head_size = 128,
                  .features = 64,
                  .v_mean = mean},
                 at::kBFloat16,
                 1e-2);
  }
}

TEST(GpuCross, HeadAndFeatureSizes) {
  for (const int64_t head_size : {32, 64, 128}) {
    for (const int64_t features : {4, 17, 32, 64, 100, 128}) {
      expect_exact(
          {.batch = 1, .head_size = head_size, .features = features, .mask = true, .v_mean = 1.0});
      expect_exact(
          {.batch = 1, .head_size = head_size, .features = features, .map = false, .mask = true});
    }
  }
}

TEST(GpuCross, GroupedHeads) {
  expect_exact({.query_heads = 6, .state_heads = 2, .mask = true});
  expect_exact({.query_heads = 6, .state_heads = 6, .key_heads = 2, .value_heads = 3});
  expect_exact({.query_heads = 8, .state_heads = 4, .key_heads = 2, .value_heads = 1});
  expect_exact({.query_heads = 4, .state_heads = 2, .value_heads = 1, .map = false});
}

TEST(GpuCross, ManySentences) {
  expect_exact({.batch = 90,
                .length = 33,
                .source_length = 300,
                .query_heads = 4,
                .state_heads = 4,
                .key_heads = 4,
                .value_heads = 4,
                .mask = true});
}

TEST(GpuCross, SeveralSequencesABlock) {  // so many that a block serves one after the other, with
                                          // and without a saved state
  const Case many{
      .batch = 301, .query_heads = 4, .state_heads = 4, .key_heads = 4, .value_heads = 4};
  for (const auto& [length, source] : {std::pair{32, 32}, {17, 65}, {64, 128}, {70, 129}, {1, 9}}) {
    Case c = many;
    c.length = length, c.source_length = source, c.v_mean = 1.0;
    expect_exact(c, at::kBFloat16, 1e-2);
    c.mask = true, c.map = false;
    expect_exact(c, at::kBFloat16, 1e-2);
  }
  expect_exact({.batch = 301,
                .length = 40,
                .source_length = 50,
                .query_heads = 6,
                .state_heads = 3,
                .key_heads = 1,
                .value_heads = 3,
                .mask = true},
               at::kBFloat16,
               1e-2);
  expect_exact({.batch = 150,
                .length = 40,
                .source_length = 150,
                .query_heads = 4,
                .state_heads = 4,
                .key_heads = 4,
                .value_heads = 4,
                .head_size = 128,
                .features = 64},
               at::kBFloat16,
               1e-2);
}

TEST(GpuCross, ClustersWithIdleBlocks) {  // 9 chunks of 64 tokens for 8 blocks, and far more of one
                                          // kind than of the other
  expect_exact(
      {.batch = 1, .length = 513, .source_length = 20, .v_mean = 1.0}, at::kBFloat16, 1e-2);
  expect_exact(
      {.batch = 1, .length = 20, .source_length = 513, .v_mean = 1.0}, at::kBFloat16, 1e-2);
  expect_exact(
      {.batch = 1, .length = 513, .source_length = 513, .map = false}, at::kBFloat16, 1e-2);
}

TEST(GpuCross, SlicesOfAFusedProjection) {
  expect_exact({.mask = true, .fused_kv = true});
}

TEST(GpuCross, SignedFeatures) {
  expect_exact({.map = false, .signed_queries = true});
  expect_exact({.map = false,
                .absolute = false,
                .signed_queries = true});  // negative denominators end on the floor
  expect_exact({.map = false, .signed_queries = true, .added = 3.0});
}

TEST(GpuCross, TheFloorPassesNoGradient) {
  expect_exact({.map = false, .faint_queries = true, .floor = 1.0});
}

TEST(GpuCross, EluRule) {
  expect_exact({.features = 64, .map = false, .floor = 0.0, .added = 1e-6});
}

TEST(GpuCross, PaddingIsNotRead) {
  for (const auto type : {at::kBFloat16, at::kFloat, at::kDouble}) {
    for (const bool map : {true, false}) {
      const Problem clean = make_problem({.map = map, .mask = true}, type);
      Problem poisoned = clean;
      const Tensor padding = clean.inputs.source_mask_BS.logical_not().unsqueeze(2).unsqueeze(3);
      for (const int i : {1, 2})
        poisoned.leaves[i] = clean.leaves[i].masked_fill(padding, std::nan(""));
      const auto function = [](const CrossInputs& in) { return cross(in); };
      const Result wanted = run(clean, false, function), actual = run(poisoned, false, function);
      EXPECT_TRUE(at::equal(wanted.o, actual.o)) << type;
      for (size_t i = 0; i < clean.names.size(); ++i)
        EXPECT_TRUE(at::equal(wanted.gradients[i], actual.gradients[i])) << type << clean.names[i];
      for (const int i : {1, 2})
        EXPECT_EQ(actual.gradients[i].masked_select(padding).abs().max().item<double>(), 0.0)
            << type;
    }
  }
}

TEST(GpuCross, NothingButPaddingGivesZeros) {
  for (const auto type : {at::kBFloat16, at::kFloat, at::kDouble}) {
    Problem p = make_problem({}, type);
    p.inputs.source_mask_BS = at::zeros({2, 200}, p.grad_o.options().dtype(at::kBool));
    const Result result = run(p, false, [](const CrossInputs& in) { return cross(in); });
    EXPECT_EQ(result.o.abs().max().item<float>(), 0.0F);
    for (const Tensor& gradient : result.gradients)
      EXPECT_EQ(gradient.abs().max().item<float>(), 0.0F);
  }
}

TEST(GpuCross, DeadFeaturesGiveZeros) {
  for (const auto type : {at::kBFloat16, at::kFloat, at::kDouble}) {
    const Problem p = make_problem({.dead = true}, type);
    const Result result = run(p, false, [](const CrossInputs& in) { return cross(in); });
    EXPECT_EQ(result.o.abs().max().item<float>(), 0.0F);
    for (const Tensor& gradient : result.gradients)
      EXPECT_EQ(gradient.abs().max().item<float>(), 0.0F);
  }
}

TEST(GpuCross, GradientsAreThoseOfNumericalDifferences) {
  const Problem p = make_problem(
      {.batch = 1, .length = 11, .source_length = 37, .head_size = 32, .features = 5, .mask = true},
      at::kDouble);
  const auto loss = [&](const std::vector<Tensor>& leaves) {
    return (cross(with_leaves(p.inputs, leaves)) * p.grad_o).sum().item<double>();
  };
  const Result result = run(p, false, [](const CrossInputs& in) { return cross(in); });
  test::expect_numerical_gradients(p.leaves, result.gradients, p.names, loss);
}

TEST(GpuCross, GraphReplayEqualsEagerBitwise) {
  for (const int64_t length : {64, 5000}) {
    const Problem p =
        make_problem({.length = length, .source_length = length + 9, .mask = true}, at::kBFloat16);
    const auto step = [&] {
      return run(p, false, [](const CrossInputs& in) { return cross(in); });
    };
    const Result eager = step();
    const auto stream = c10::cuda::getStreamFromPool();
    c10::cuda::getCurrentCUDAStream().synchronize();
    const c10::cuda::CUDAStreamGuard guard(stream);
    step();
    at::cuda::CUDAGraph graph;
    graph.capture_begin();
    const Result captured = step();
    graph.capture_end();
    captured.o.fill_(std::nan(""));
    graph.replay();
    stream.synchronize();
    EXPECT_TRUE(at::equal(eager.o, captured.o));
    for (size_t i = 0; i < p.names.size(); ++i)
      EXPECT_TRUE(at::equal(eager.gradients[i], captured.gradients[i])) << p.names[i];
  }
}

TEST(GpuCross, BadInputIsRefusedByName) {
  const CrossInputs good = make_problem({}, at::kBFloat16).inputs;
  const auto refusal = [&](const std::function<void(CrossInputs&)>& spoil) {
    return message_of([&] {
      CrossInputs in = good;
      spoil(in);
      cross(in);
    });
  };
  const auto zeros = [](at::IntArrayRef sizes, at::ScalarType type) {
    return at::zeros(sizes, at::TensorOptions(at::kCUDA).dtype(type));
  };
  EXPECT_THAT(refusal([](auto& in) { in.q_BTHd = in.q_BTHd.cpu(); }),
              HasSubstr("q is on cpu, allowed: cuda"));
  EXPECT_THAT(refusal([](auto& in) { in.k_BSHd = in.k_BSHd.cpu(); }),
              HasSubstr("k is on cpu, q is on cuda:0, allowed: one device"));
  EXPECT_THAT(refusal([](auto& in) { in.weight_MKd = in.weight_MKd.cpu(); }),
              HasSubstr("weight is on cpu, q is on cuda:0, allowed: one device"));
  EXPECT_THAT(refusal([&](auto& in) {
                in.source_mask_BS = zeros({2, 200}, at::kBool).cpu();
              }),
              HasSubstr("source_mask is on cpu, q is on cuda:0, allowed: one device"));
  EXPECT_THAT(refusal([](auto& in) {
                in.weight_MKd = in.weight_MKd.repeat({1, 5, 1}).slice(1, 0, 129),
                in.bias_MK = in.bias_MK.repeat({1, 5}).slice(1, 0, 129);
              }),
              HasSubstr("feature size is 129, allowed: 1 to 128"));
  EXPECT_THAT(
      refusal([](auto& in) { in.q_BTHd = in.q_BTHd.repeat_interleave(2, 3).slice(3, 0, 128, 2); }),
      HasSubstr("q has stride 2 in its last dimension, allowed: 1"));
  EXPECT_THAT(refusal([](auto& in) { in.q_BTHd = in.q_BTHd.to(at::kHalf); }),
              HasSubstr("q has dtype Half, allowed: bfloat16, float32, float64"));
  EXPECT_THAT(refusal([](auto& in) { in.v_BSHd = in.v_BSHd.to(at::kFloat); }),
              HasSubstr("v has dtype Float, q has BFloat16, allowed: the same"));
  EXPECT_THAT(refusal([](auto& in) { in.v_BSHd = in.v_BSHd.slice(3, 0, 48); }),
              HasSubstr("v has head size 48, allowed: 32, 64, 128"));
  EXPECT_THAT(refusal([](auto& in) { in.v_BSHd = in.v_BSHd.slice(1, 0, 10); }),
              HasSubstr("v has shape [2, 10, 2, 64], allowed: [2, 200, 2, 64]"));
  EXPECT_THAT(refusal([](auto& in) { in.k_BSHd = in.k_BSHd.slice(1, 0, 0); }),
              HasSubstr("k has size 0 in dimension 1"));
  EXPECT_THAT(refusal([](auto& in) {
                in.weight_MKd = in.weight_MKd.slice(1, 0, 0),
                in.bias_MK = in.bias_MK.slice(1, 0, 0);
              }),
              HasSubstr("feature size is 0, allowed: 1 to 128"));
  EXPECT_THAT(refusal([](auto& in) { in.bias_MK = Tensor(); }),
              HasSubstr("weight and bias come together"));
  EXPECT_THAT(refusal([](auto& in) {
                in.q_BTHd = at::cat({in.q_BTHd, in.q_BTHd.slice(2, 0, 1)}, 2);
              }),
              HasSubstr("heads of q, the map, k, v are 3, 2, 2, 2"));
  EXPECT_THAT(refusal([](auto& in) {
                in.q_BTHd = at::empty({2, 130, 2, 65}, in.q_BTHd.options()).slice(3, 0, 64);
              }),
              HasSubstr("in dimension 0, allowed: multiples of 8 (16 bytes)"));
  EXPECT_THAT(refusal([&](auto& in) {
                in.source_mask_BS = zeros({2, 200}, at::kFloat);
              }),
              HasSubstr("source_mask has dtype Float, allowed: Bool"));
  EXPECT_THAT(refusal([&](auto& in) {
                in.source_mask_BS = zeros({2, 130}, at::kBool);
              }),
              HasSubstr("source_mask has shape [2, 130], allowed: [2, 200]"));
  EXPECT_THAT(refusal([](auto& in) { in.rule.floor = 0.0; }), HasSubstr("floor is 0 and added 0"));
  EXPECT_THAT(refusal([](auto& in) { in.scale = 0.0; }),
              HasSubstr("scale is 0, allowed: positive"));
}

}  // namespace
}  // namespace t2r::ops
