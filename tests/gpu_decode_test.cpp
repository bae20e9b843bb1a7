// The decode step against a float64 oracle and against causal attention token by token.
#include <ATen/cuda/CUDAGraph.h>
#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <torch/types.h>

#include "model/kernels/cuda/decode/decode_step.h"
#include "model/ops/causal_op.h"
#include "model/ops/decode_op.h"
#include "tests/gpu_support.h"

namespace t2r::ops {
namespace {

using test::message_of;
using test::relative_error;
using test::spread;
using testing::HasSubstr;

struct Case {
  int64_t batch = 3, query_heads = 2, state_heads = 2, key_heads = 2, value_heads = 2,
          head_size = 64, features = 32;
  bool map = true, dead = false;
  double v_mean = 0.0, scale = 0.125, floor = 0.01, added = 0.0;

  friend std::ostream& operator<<(std::ostream& out, const Case& c) {
    return out << "B" << c.batch << " H" << c.query_heads << "/" << c.state_heads << "/"
               << c.key_heads << "/" << c.value_heads << " d" << c.head_size << " k" << c.features
               << (c.map ? " map" : " features") << " v" << c.v_mean;
  }
};

/// A sequence of tokens; `at(t)` is what the step takes for token t.
struct Sequence {
  Tensor q_BTHd, k_BTHd, v_BTHd;
  Tensor weight, bias;  // or undefined
  Tensor s, z;
  Case c;

  DecodeInputs at(int64_t t) const {
    return {q_BTHd.select(1, t),
            k_BTHd.select(1, t),
            v_BTHd.select(1, t),
            weight,
            bias,
            s,
            z,
            c.scale,
            {c.floor, c.added}};
  }
};

Sequence make_sequence(const Case& c, int64_t length, at::ScalarType type) {
  at::manual_seed(7);
  const auto options = at::TensorOptions(at::kCUDA).dtype(at::kFloat);
  const auto random = [&](at::IntArrayRef sizes) { return at::randn(sizes, options); };
  Sequence sequence;
  sequence.c = c;
  if (c.map) {
    sequence.q_BTHd = random({c.batch, length, c.query_heads, c.head_size}).to(type);
    sequence.k_BTHd = random({c.batch, length, c.key_heads, c.head_size}).to(type);
    sequence.weight = random({c.state_heads, c.features, c.head_size})
                          .div(std::sqrt(double(c.head_size)))
                          .to(type);
    // Few features may all be off, and then the floor decides: rounding would flip it, so they are
    // kept on.
    sequence.bias = random({c.state_heads, c.features})
                        .abs()
                        .mul(0.1)
                        .add(c.dead            ? -20.0
                             : c.features < 16 ? 2.0
                                               : 0.05)
                        .to(type);
  } else {
    sequence.q_BTHd =
        at::relu(random({c.batch, length, c.query_heads, c.features}).add(0.5)).add(0.05).to(type);
    sequence.k_BTHd =
        at::relu(random({c.batch, length, c.state_heads, c.features}).add(0.5)).add(0.05).to(type);
  }
  sequence.v_BTHd = random({c.batch, length, c.value_heads, c.head_size}).add(c.v_mean).to(type);
  sequence.s = random({c.batch, c.state_heads, c.features, c.head_size}).mul(2);
  sequence.z = random({c.batch, c.state_heads, c.features}).abs().mul(5);
  return sequence;
}

struct Step {
  Tensor o, s, z;
};

/// One step in float64.
Step oracle(const DecodeInputs& in, const Case& c) {
  const auto exact = [](const Tensor& tensor) { return tensor.to(at::kDouble); };
  Tensor phi_q = exact(in.q_BHd), phi_k = exact(in.k_BHd);
  const Tensor v = spread(exact(in.v_BHd), c.state_heads, 1);
  if (c.map) {
    const Tensor weight = exact(in.weight_MKd), bias = exact(in.bias_MK);
    phi_q =
        at::relu(at::einsum("bhd,hkd->bhk", {phi_q, spread(weight, c.query_heads, 0)}) * c.scale +
                 spread(bias, c.query_heads, 0));
    phi_k = at::relu(at::einsum("bhd,hkd->bhk", {spread(phi_k, c.state_heads, 1), weight}) + bias);
  }
  const Tensor s = exact(in.s_BHKd) + at::einsum("bhk,bhd->bhkd", {phi_k, v}),
               z = exact(in.z_BHK) + phi_k;
  const Tensor numerator = at::einsum("bhk,bhkd->bhd", {phi_q, spread(s, c.query_heads, 1)});
  const Tensor denominator =
      at::einsum("bhk,bhk->bh", {phi_q, spread(z, c.query_heads, 1)}) + c.added;
  return {numerator / denominator.clamp_min(c.floor).unsqueeze(2), s, z};
}

int64_t plan_bytes(const Case& c, at::ScalarType type) {
  const kernels::cuda::Shape shape{.batch = static_cast<int>(c.batch),
                                   .length = 1,
                                   .query_heads = static_cast<int>(c.query_heads),
                                   .state_heads = static_cast<int>(c.state_heads),
                                   .key_heads = static_cast<int>(c.key_heads),
                                   .value_heads = static_cast<int>(c.value_heads),
                                   .head_size = static_cast<int>(c.head_size),
                                   .feature_size = static_cast<int>(c.features)};
  return kernels::cuda::plan_decode(shape, c.map, type == at::kBFloat16, current_device())
      .shared_bytes;
}

void expect_exact(const Case& c) {
  for (const auto& [type, bar] : {std::pair{at::kBFloat16, 1e-2}, std::pair{at::kFloat, 2e-5}}) {
    SCOPED_TRACE(testing::Message() << c << " " << type);
    const Sequence sequence = make_sequence(c, 3, type);
    if (test::is_refused_for_memory(plan_bytes(c, type), [&] { decode_step(sequence.at(0)); }))
      continue;
    for (int64_t t = 0; t < 3; ++t) {
      const DecodeInputs in = sequence.at(t);
      const Step exact = oracle(in, c);
      const Tensor o = decode_step(in);
      ASSERT_EQ(o.sizes(), exact.o.sizes());
      EXPECT_EQ(o.scalar_type(), type);
      EXPECT_LE(relative_error(o, exact.o), bar) << "o of step " << t;
      EXPECT_LE(relative_error(in.s_BHKd, exact.s), 2e-5)
          << "s after step " << t;  // float32 for every dtype of the inputs
      EXPECT_LE(relative_error(in.z_BHK, exact.z), 2e-5) << "z after step " << t;
    }
  }
}

TEST(GpuDecode, AgreesWithTheOracle) {
  expect_exact({});
  expect_exact({.map = false});
}

TEST(GpuDecode, HeadAndFeatureSizes) {
  for (const int64_t head_size : {32, 64, 128}) {
    for (const int64_t features : {1, 4, 17, 32, 64, 100, 127, 128}) {
      expect_exact({.head_size = head_size, .features = features, .v_mean = 1.0});
      expect_exact({.head_size = head_size, .features = features, .map = false});
    }
  }
}

TEST(GpuDecode, GroupedQueries) {
  expect_exact({.query_heads = 9, .state_heads = 3, .key_heads = 3, .value_heads = 3});
  expect_exact({.query_heads = 6, .state_heads = 6, .key_heads = 2, .value_heads = 3});
  expect_exact({.query_heads = 22, .state_heads = 2, .key_heads = 1, .value_heads = 1});
  expect_exact({.query_heads = 64,
                .state_heads = 1,
                .key_heads = 1,
                .value_heads = 1,
                .head_size = 128,
                .features = 128});
  expect_exact({.query_heads = 20, .state_heads = 2, .value_heads = 1, .map = false});
}

TEST(GpuDecode,
     AnyNumberOfStates) {  // four warps a state, then one warp, of 1 to 8 sequences a block
  for (const int64_t batch : {1, 5, 20, 75, 150, 600, 1001, 2003}) expect_exact({.batch = batch});
}

TEST(GpuDecode, ManyStatesOfEverySize) {
  for (const int64_t head_size : {32, 64, 128}) {
    for (const int64_t features : {1, 17, 64, 128}) {
      expect_exact({.batch = 1201, .head_size = head_size, .features = features, .v_mean = 1.0});
      expect_exact({.batch = 1201, .head_size = head_size, .features = features, .map = false});
    }
  }
  expect_exact(
      {.batch = 601, .query_heads = 9, .state_heads = 3, .key_heads = 3, .value_heads = 1});
  expect_exact({.batch = 301,
                .query_heads = 8,
                .state_heads = 2,
                .key_heads = 1,
                .head_size = 128,
                .features = 100});
}

TEST(GpuDecode, EluRule) {
  expect_exact({.features = 64, .map = false, .floor = 0.0, .added = 1e-6});
}

TEST(GpuDecode, DeadFeaturesGiveZeros) {
  Sequence sequence = make_sequence({.dead = true}, 1, at::kBFloat16);
  const Tensor s = sequence.s.clone(), z = sequence.z.clone();
  EXPECT_EQ(decode_step(sequence.at(0)).abs().max().item<float>(), 0.0F);
  EXPECT_TRUE(at::equal(sequence.s, s) && at::equal(sequence.z, z));
}

TEST(GpuDecode, EqualsCausalAttentionTokenByToken) {
  const Case grouped{.query_heads = 6,
                     .state_heads = 2,
                     .key_heads = 1,
                     .value_heads = 1,
                     .head_size = 128,
                     .features = 48};
  for (const Case& c : {Case{}, Case{.map = false}, grouped}) {
    // The tensor-core kernels round features to bfloat16, the step does not.
    for (const auto& [type, bar] : {std::pair{at::kBFloat16, 1e-2}, std::pair{at::kFloat, 2e-5}}) {
      SCOPED_TRACE(testing::Message() << c << " " << type);
      const Sequence sequence = make_sequence(c, 70, type);
      const CausalOutputs whole = causal({sequence.q_BTHd,
                                          sequence.k_BTHd,
                                          sequence.v_BTHd,
                                          sequence.weight,
                                          sequence.bias,
                                          {},
                                          sequence.s.clone(),
                                          sequence.z.clone(),
                                          c.scale,
                                          {c.floor, c.added}});
      std::vector<Tensor> o;
      for (int64_t t = 0; t < 70; ++t) o.push_back(decode_step(sequence.at(t)));
      EXPECT_LE(relative_error(at::stack(o, 1), whole.o_BTHd), bar) << "o";
      EXPECT_LE(relative_error(sequence.s, whole.s_BHKd), bar) << "s";
      EXPECT_LE(relative_error(sequence.z, whole.z_BHK), bar) << "z";
    }
  }
}

TEST(GpuDecode, SlicesOfAFusedProjection) {
  const Case c{.query_heads = 3, .state_heads = 3, .key_heads = 3, .value_heads = 3};
  for (const int64_t offset : {0, 1}) {  // 1: no alignment is asked of the token's vectors
    Sequence sequence = make_sequence(c, 1, at::kBFloat16);
    const Tensor qkv =
        at::randn({c.batch, 9 * 64 + offset}, sequence.v_BTHd.options()).slice(1, offset);
    const auto parts = qkv.unflatten(1, {9, 64}).split(3, 1);
    const DecodeInputs in{parts[0],
                          parts[1],
                          parts[2],
                          sequence.weight,
                          sequence.bias,
                          sequence.s,
                          sequence.z,
                          c.scale,
                          {c.floor, c.added}};
    const Step exact = oracle(in, c);
    EXPECT_LE(relative_error(decode_step(in), exact.o), 1e-2);
    EXPECT_LE(relative_error(sequence.s, exact.s), 2e-5);
  }
}

TEST(GpuDecode, GraphReplayEqualsEagerBitwise) {
  for (const int64_t batch : {1, 200}) {
    const Sequence sequence = make_sequence({.batch = batch}, 1, at::kBFloat16);
    const Tensor s = sequence.s.clone(), z = sequence.z.clone();
    const auto reset = [&] { sequence.s.copy_(s), sequence.z.copy_(z); };
    const auto stream = c10::cuda::getStreamFromPool();
    c10::cuda::getCurrentCUDAStream().synchronize();
    const c10::cuda::CUDAStreamGuard guard(stream);
    const Tensor eager_o = decode_step(sequence.at(0));
    const Tensor eager_s = sequence.s.clone(), eager_z = sequence.z.clone();
    reset();
    at::cuda::CUDAGraph graph;
    graph.capture_begin();
    const Tensor o = decode_step(sequence.at(0));
    graph.capture_end();
    o.fill_(std::nan(""));
    graph.replay();
    stream.synchronize();
    EXPECT_TRUE(at::equal(o, eager_o));
    EXPECT_TRUE(at::equal(sequence.s, eager_s) && at::equal(sequence.z, eager_z));
  }
}

TEST(GpuDecode, BadInputIsRefusedByName) {
  const DecodeInputs good = make_sequence({}, 1, at::kBFloat16).at(0);
  const Tensor s = good.s_BHKd.clone(), z = good.z_BHK.clone();
  const auto refusal = [&](const std::function<void(DecodeInputs&)>& spoil) {
    const std::string message = message_of([&] {
      DecodeInputs in = good;
      spoil(in);
      decode_step(in);
    });
    EXPECT_TRUE(at::equal(good.s_BHKd, s) && at::equal(good.z_BHK, z))
        << "the state was updated: " << message;
    return message;
  };
  EXPECT_THAT(refusal([](auto& in) { in.q_BHd = in.q_BHd.cpu(); }),
              HasSubstr("q is on cpu, allowed: cuda"));
  EXPECT_THAT(refusal([](auto& in) { in.v_BHd = in.v_BHd.cpu(); }),
              HasSubstr("v is on cpu, q is on cuda:0, allowed: one device"));
  EXPECT_THAT(refusal([](auto& in) { in.bias_MK = in.bias_MK.cpu(); }),
              HasSubstr("bias is on cpu, q is on cuda:0, allowed: one device"));
  EXPECT_THAT(refusal([](auto& in) { in.s_BHKd = in.s_BHKd.cpu(); }),
              HasSubstr("s is on cpu, q is on cuda:0, allowed: one device"));
  EXPECT_THAT(refusal([](auto& in) {
                in.weight_MKd = in.weight_MKd.slice(1, 0, 0),
                in.bias_MK = in.bias_MK.slice(1, 0, 0);
              }),
              HasSubstr("feature size is 0, allowed: 1 to 128"));
  EXPECT_THAT(refusal([](auto& in) {
                in.weight_MKd = in.weight_MKd.repeat({1, 5, 1}).slice(1, 0, 129),
                in.bias_MK = in.bias_MK.repeat({1, 5}).slice(1, 0, 129);
              }),
              HasSubstr("feature size is 129, allowed: 1 to 128"));
  EXPECT_THAT(refusal([](auto& in) { in.q_BHd = in.q_BHd.to(at::kDouble); }),
              HasSubstr("q has dtype Double, allowed: bfloat16, float32"));
  EXPECT_THAT(refusal([](auto& in) { in.k_BHd = in.k_BHd.to(at::kFloat); }),
              HasSubstr("k has dtype Float, q has BFloat16, allowed: the same"));
  EXPECT_THAT(refusal([](auto& in) { in.v_BHd = in.v_BHd.slice(2, 0, 48); }),
              HasSubstr("v has head size 48, allowed: 32, 64, 128"));
  EXPECT_THAT(refusal([](auto& in) { in.q_BHd = in.q_BHd.unsqueeze(1); }),
              HasSubstr("q has 4 dimensions, allowed: 3"));
  EXPECT_THAT(refusal([](auto& in) { in.k_BHd = in.k_BHd.slice(0, 0, 2); }),
              HasSubstr("k has shape [2, 2, 64], allowed: [3, 2, 64]"));
  EXPECT_THAT(refusal([](auto& in) {
                in.q_BHd = at::cat({in.q_BHd, in.q_BHd.slice(1, 0, 1)}, 1);
              }),
              HasSubstr("heads of q, the map, k, v are 3, 2, 2, 2"));
  EXPECT_THAT(refusal([](auto& in) { in.bias_MK = Tensor(); }),
              HasSubstr("weight and bias come together"));
  EXPECT_THAT(refusal([](auto& in) { in.s_BHKd = in.s_BHKd.to(at::kBFloat16); }),
              HasSubstr("s has dtype BFloat16, allowed: Float"));
  EXPECT_THAT(
      refusal([](auto& in) { in.s_BHKd = in.s_BHKd.transpose(2, 3).contiguous().transpose(2, 3); }),
      HasSubstr("allowed: contiguous"));
  EXPECT_THAT(refusal([](auto& in) { in.z_BHK = in.z_BHK.slice(2, 0, 31); }),
              HasSubstr("z has shape [3, 2, 31], allowed: [3, 2, 32]"));
  EXPECT_THAT(refusal([](auto& in) { in.rule.floor = 0.0; }), HasSubstr("floor is 0 and added 0"));
}

}  // namespace
}  // namespace t2r::ops
