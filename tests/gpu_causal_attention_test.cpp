// The GPU operators against the float64 oracle, on any GPU since Ampere. Run with
// T2R_CUDA_KERNELS=sm80 and sm86 as well, a Hopper GPU tests both families of kernels.
#include <ATen/cuda/CUDAGraph.h>
#include <c10/cuda/CUDAGuard.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <torch/csrc/autograd/autograd.h>
#include <torch/types.h>

#include <thread>

#include "model/attention/linear_attention_naive.h"
#include "model/gpu_ops.h"
#include "model/kernels/cuda/causal/causal_simt.h"
#include "model/ops/causal_op.h"
#include "tests/gpu_support.h"

namespace t2r::ops {
namespace {

using test::message_of;
using test::relative_error;
using test::spread;
using testing::HasSubstr;

struct Case {
  int64_t batch = 2, length = 200, query_heads = 2, state_heads = 2, key_heads = 2, value_heads = 2,
          head_size = 64, features = 32;
  bool map = true, state = false, documents = false, fused_qkv = false, dead = false;
  double v_mean = 0.0, scale = 1.0, floor = 0.01, added = 0.0;

  friend std::ostream& operator<<(std::ostream& out, const Case& c) {
    return out << "B" << c.batch << " T" << c.length << " H" << c.query_heads << "/"
               << c.state_heads << "/" << c.key_heads << "/" << c.value_heads << " d" << c.head_size
               << " k" << c.features << (c.map ? " map" : " features") << (c.state ? " state" : "")
               << (c.documents ? " documents" : "") << (c.fused_qkv ? " fused" : "")
               << (c.dead ? " dead" : "") << " v" << c.v_mean << " scale" << c.scale;
  }
};

/// The same computation by the oracle: features by einsum, documents one by one.
CausalOutputs oracle(const CausalInputs& in, int64_t state_heads) {
  Tensor phi_q = in.q_BTHd, phi_k = in.k_BTHd;
  if (in.weight_MKd.defined()) {
    const int64_t heads = phi_q.size(2);
    phi_q = at::relu(at::einsum("bthd,hkd->bthk", {phi_q, spread(in.weight_MKd, heads, 0)})
                         .mul(in.scale)
                         .add(spread(in.bias_MK, heads, 0)));
    phi_k = at::relu(at::einsum("bthd,hkd->bthk", {spread(phi_k, state_heads, 2), in.weight_MKd})
                         .add(in.bias_MK));
  }
  const model::DenominatorRule& rule = in.rule;
  const int64_t batch = phi_q.size(0), length = phi_q.size(1);
  if (!in.document_start_BT.defined()) {
    model::LinearAttentionState initial;
    if (in.initial_s_BMKd.defined()) initial = {in.initial_s_BMKd, in.initial_z_BMK};
    const auto out = model::causal_linear_attention_parallel(
        phi_q, phi_k, in.v_BTHd, in.initial_s_BMKd.defined() ? &initial : nullptr, rule);
    return {out.o_BTHV, out.state.s_BHKV, out.state.z_BHK};
  }
  const Tensor starts = in.document_start_BT.cpu();
  std::vector<Tensor> o, s, z;
  for (int64_t b = 0; b < batch; ++b) {
    std::vector<Tensor> parts;
    model::LinearAttentionOutput last;
    for (int64_t begin = 0; begin < length;) {
      int64_t end = begin + 1;
      while (end < length && starts[b][end].item<int>() == starts[b][begin].item<int>()) ++end;
      const auto rows = [&](const Tensor& tensor) {
        return tensor.slice(0, b, b + 1).slice(1, begin, end);
      };
      model::LinearAttentionState initial;
      const bool carried = starts[b][begin].item<int>() < 0 && in.initial_s_BMKd.defined();
      if (carried)
        initial = {in.initial_s_BMKd.slice(0, b, b + 1), in.initial_z_BMK.slice(0, b, b + 1)};
      last = model::causal_linear_attention_parallel(
          rows(phi_q), rows(phi_k), rows(in.v_BTHd), carried ? &initial : nullptr, rule);
      parts.push_back(last.o_BTHV);
      begin = end;
    }
    o.push_back(at::cat(parts, 1));
    s.push_back(last.state.s_BHKV);
    z.push_back(last.state.z_BHK);
  }
  return {at::cat(o, 0), at::cat(s, 0), at::cat(z, 0)};
}

struct Problem {
  CausalInputs inputs;
  std::vector<Tensor> leaves;
  std::vector<std::string> names;
  Tensor grad_o, grad_s, grad_z;
};

Problem make_problem(const Case& c, at::ScalarType type, uint64_t seed = 7) {
  at::manual_seed(seed);
  const auto options = at::TensorOptions(at::kCUDA).dtype(at::kFloat);
  const auto state_type = type == at::kDouble ? at::kDouble : at::kFloat;
  const auto random = [&](at::IntArrayRef sizes) { return at::randn(sizes, options); };
  Problem p;
  CausalInputs& in = p.inputs;
  if (c.map) {
    if (c.fused_qkv) {
      const Tensor qkv =
          random({c.batch, c.length, c.query_heads + c.key_heads + c.value_heads, c.head_size})
              .to(type);
      const auto parts = qkv.split_with_sizes({c.query_heads, c.key_heads, c.value_heads}, 2);
      in.q_BTHd = parts[0], in.k_BTHd = parts[1], in.v_BTHd = parts[2];
    } else {
      in.q_BTHd = random({c.batch, c.length, c.query_heads, c.head_size}).to(type);
      in.k_BTHd = random({c.batch, c.length, c.key_heads, c.head_size}).to(type);
    }
    in.weight_MKd = random({c.state_heads, c.features, c.head_size})
                        .div(std::sqrt(double(c.head_size)))
                        .to(type);
    // Few features may all be off, and then the floor decides: rounding would flip it, so they are
    // kept on.
    in.bias_MK = random({c.state_heads, c.features})
                     .abs()
                     .mul(0.1)
                     .add(c.dead            ? -20.0
                          : c.features < 16 ? 1.0
                                            : 0.05)
                     .to(type);
  } else {
    in.q_BTHd = at::relu(random({c.batch, c.length, c.query_heads, c.features}).add(0.5))
                    .add(0.05)
                    .to(type);
    in.k_BTHd = at::relu(random({c.batch, c.length, c.state_heads, c.features}).add(0.5))
                    .add(0.05)
                    .to(type);
  }
  if (!in.v_BTHd.defined())
    in.v_BTHd = random({c.batch, c.length, c.value_heads, c.head_size}).add(c.v_mean).to(type);
  in.scale = c.scale, in.rule.floor = c.floor, in.rule.added = c.added;
  p.leaves = {in.q_BTHd.detach(), in.k_BTHd.detach(), in.v_BTHd.detach()};
  p.names = {"q", "k", "v"};
  if (c.map) {
    p.leaves.insert(p.leaves.end(), {in.weight_MKd, in.bias_MK});
    p.names.insert(p.names.end(), {"weight", "bias"});
  }
  if (c.state) {
    p.leaves.push_back(
        random({c.batch, c.state_heads, c.features, c.head_size}).mul(2).to(state_type));
    p.leaves.push_back(random({c.batch, c.state_heads, c.features}).abs().mul(5).to(state_type));
    p.names.insert(p.names.end(), {"initial_s", "initial_z"});
  }
  if (c.documents) {
    Tensor starts = at::full({c.batch, c.length}, c.state ? -1 : 0, at::kInt);
    for (int64_t b = 0; b < c.batch; ++b) {
      for (int64_t t = 0, start = starts[b][0].item<int>(); t < c.length; ++t) {
        if (t > 0 && at::rand({}).item<double>() < 3.0 / double(c.length)) start = t;
        starts[b][t] = start;
      }
    }
    in.document_start_BT = starts.to(at::kCUDA);
  }
  p.grad_o = random({c.batch, c.length, c.query_heads, c.head_size}).to(type);
  p.grad_s = random({c.batch, c.state_heads, c.features, c.head_size}).to(state_type);
  p.grad_z = random({c.batch, c.state_heads, c.features}).to(state_type);
  return p;
}

/// `inputs` with `leaves` in their places.
CausalInputs with_leaves(CausalInputs in, const std::vector<Tensor>& leaves, const Case& c) {
  size_t i = 0;
  in.q_BTHd = leaves[i++], in.k_BTHd = leaves[i++], in.v_BTHd = leaves[i++];
  if (c.map) in.weight_MKd = leaves[i++], in.bias_MK = leaves[i++];
  if (c.state) in.initial_s_BMKd = leaves[i++], in.initial_z_BMK = leaves[i++];
  return in;
}

struct Result {
  CausalOutputs outputs;
  std::vector<Tensor> gradients;
};

template <class Function>
Result run(const Problem& p, const Case& c, bool exact, const Function& function) {
  std::vector<Tensor> leaves;
  for (const Tensor& leaf : p.leaves)
    leaves.push_back((exact ? leaf.to(at::kDouble) : leaf).detach().requires_grad_());
  Result result;
  result.outputs = function(with_leaves(p.inputs, leaves, c));
  const auto as = [&](const Tensor& gradient) {
    return exact ? gradient.to(at::kDouble) : gradient;
  };
  std::vector<Tensor> outputs{result.outputs.o_BTHd}, gradients{as(p.grad_o)};
  if (c.state) {
    outputs.insert(outputs.end(), {result.outputs.s_BHKd, result.outputs.z_BHK});
    gradients.insert(gradients.end(), {as(p.grad_s), as(p.grad_z)});
  }
  result.gradients = torch::autograd::grad(outputs, leaves, gradients, std::nullopt, false, true);
  return result;
}

int64_t simt_bytes(const Case& c, at::ScalarType type) {
  const kernels::cuda::Shape shape{.head_size = static_cast<int>(c.head_size),
                                   .feature_size = static_cast<int>(c.features)};
  return kernels::cuda::causal_simt_bytes(
      shape, /*backward=*/true, static_cast<int>(c10::elementSize(type)));
}

void expect_exact(const Case& c, at::ScalarType type, double bar) {
  SCOPED_TRACE(testing::Message() << c << " " << type);
  const Problem p = make_problem(c, type);
  const auto with_ours = [&] {
    return run(p, c, false, [](const CausalInputs& in) { return causal(in); });
  };
  if (type == at::kDouble && test::is_refused_for_memory(simt_bytes(c, type), with_ours)) return;
  const Result actual = with_ours();
  const Result exact =
      run(p, c, true, [&](const CausalInputs& in) { return oracle(in, c.state_heads); });
  EXPECT_LE(relative_error(actual.outputs.o_BTHd, exact.outputs.o_BTHd), bar) << "o";
  EXPECT_LE(relative_error(actual.outputs.s_BHKd, exact.outputs.s_BHKd), bar) << "final s";
  EXPECT_LE(relative_error(actual.outputs.z_BHK, exact.outputs.z_BHK), bar) << "final z";
  for (size_t i = 0; i < p.names.size(); ++i) {
    const Tensor wanted =
        exact.gradients[i].defined() ? exact.gradients[i] : at::zeros_like(p.leaves[i]);
    EXPECT_LE(relative_error(actual.gradients[i], wanted), bar) << "gradient of " << p.names[i];
  }
}

void expect_exact(const Case& c) {
  expect_exact(c, at::kBFloat16, 1e-2);
  expect_exact(c, at::kFloat, 2e-5);
  expect_exact(c, at::kDouble, 1e-9);
}

TEST(GpuCausal, AgreesWithTheOracle) {
  expect_exact({});
}

TEST(GpuCausal, LengthsThatFillNoChunk) {
  for (const int64_t length : {1, 2, 63, 65, 127, 128, 129, 517}) expect_exact({.length = length});
}

TEST(GpuCausal, ValuesFarFromZero) {
  for (const double mean : {1.0, 4.0}) {
    expect_exact({.length = 517, .v_mean = mean, .scale = 0.125});
    expect_exact({.batch = 1, .length = 4096, .v_mean = mean}, at::kBFloat16, 1e-2);
    expect_exact({.batch = 1, .length = 4096, .head_size = 128, .features = 64, .v_mean = mean},
                 at::kBFloat16,
                 1e-2);
  }
}

TEST(GpuCausal, TheLongestSequence) {  // against the operator in float64, or float32, which the
                                       // oracle has tested
  for (const auto& [head_size, features] : {std::pair<int64_t, int64_t>{64, 32}, {128, 64}}) {
    for (const double mean : {0.0, 4.0}) {
      const Case c{.batch = 1,
                   .length = 32768,
                   .query_heads = 1,
                   .state_heads = 1,
                   .key_heads = 1,
                   .value_heads = 1,
                   .head_size = head_size,
                   .features = features,
                   .v_mean = mean};
      SCOPED_TRACE(testing::Message() << c);
      const Problem p = make_problem(c, at::kBFloat16);
      const Result actual = run(p, c, false, [](const CausalInputs& in) { return causal(in); });
      const auto type =
          simt_bytes(c, at::kDouble) <= current_device().shared_bytes ? at::kDouble : at::kFloat;
      const Result exact = run(p, c, true, [&](CausalInputs in) {
        for (Tensor* tensor : {&in.q_BTHd, &in.k_BTHd, &in.v_BTHd, &in.weight_MKd, &in.bias_MK})
          *tensor = tensor->to(type);
        CausalOutputs out = causal(in);
        out.o_BTHd = out.o_BTHd.to(at::kDouble);
        return out;
      });
      EXPECT_LE(relative_error(actual.outputs.o_BTHd, exact.outputs.o_BTHd), 1e-2) << "o";
      for (size_t i = 0; i < p.names.size(); ++i)
        EXPECT_LE(relative_error(actual.gradients[i], exact.gradients[i]), 1e-2) << p.names[i];
    }
  }
}

TEST(GpuCausal, HeadAndFeatureSizes) {
  for (const int64_t head_size : {32, 64, 128}) {
    for (const int64_t features : {4, 17, 32, 64, 100, 128}) {
      expect_exact(
          {.batch = 1, .length = 333, .head_size = head_size, .features = features, .v_mean = 1.0});
      expect_exact({.batch = 1,
                    .length = 333,
                    .head_size = head_size,
                    .features = features,
                    .map = false,
                    .state = true});
    }
  }
}

TEST(GpuCausal, GroupedQueries) {
  expect_exact({.length = 300, .query_heads = 6, .state_heads = 2, .state = true});
  expect_exact({.length = 300,
                .query_heads = 6,
                .state_heads = 6,
                .key_heads = 2,
                .value_heads = 2,
                .scale = 0.125});
  expect_exact({.length = 300,
                .query_heads = 4,
                .state_heads = 2,
                .value_heads = 1,
                .map = false,
                .state = true});
}

TEST(GpuCausal, StateInAndOut) {
  expect_exact({.length = 517, .state = true});
}

TEST(GpuCausal, DocumentsDoNotSeeEachOther) {
  expect_exact({.length = 517, .documents = true});
  expect_exact({.length = 517, .state = true, .documents = true});
  expect_exact({.batch = 1,
                .length = 4096,
                .query_heads = 1,
                .state_heads = 1,
                .key_heads = 1,
                .value_heads = 1,
                .state = true,
                .documents = true},
               at::kBFloat16,
               1e-2);
}

TEST(GpuCausal, DocumentsOfGroupedHeadsInEveryShape) {
  for (const int64_t head_size : {32, 64, 128}) {
    for (const int64_t features : {32, 64, 128}) {
      for (const bool map : {true, false}) {
        expect_exact({.length = 333,
                      .query_heads = 4,
                      .key_heads = map ? 1 : 2,
                      .head_size = head_size,
                      .features = features,
                      .map = map,
                      .state = true,
                      .documents = true},
                     at::kBFloat16,
                     1e-2);
      }
    }
  }
}

TEST(GpuCausal, SlicesOfAFusedProjection) {
  expect_exact({.length = 257,
                .query_heads = 3,
                .state_heads = 3,
                .key_heads = 3,
                .value_heads = 3,
                .fused_qkv = true});
}

TEST(GpuCausal, AFusedProjectionGetsOneGradient) {
  for (const auto type : {at::kBFloat16, at::kFloat}) {
    for (const auto& [query_heads, key_heads] : {std::pair<int64_t, int64_t>{3, 3}, {4, 2}}) {
      for (const int64_t head_size : {64, 128}) {
        SCOPED_TRACE(testing::Message()
                     << type << " " << query_heads << " " << key_heads << " " << head_size);
        const auto randn = [](at::IntArrayRef sizes) {
          return at::randn(sizes, at::TensorOptions(at::kCUDA));
        };
        std::vector<Tensor> leaves{randn({2, 193, query_heads + 2 * key_heads, head_size}),
                                   randn({key_heads, 32, head_size}),
                                   randn({key_heads, 32})};
        for (Tensor& leaf : leaves) leaf = leaf.to(type).requires_grad_(true);
        const auto parts = leaves[0].split_with_sizes({query_heads, key_heads, key_heads}, 2);
        const Tensor apart = causal({.q_BTHd = parts[0],
                                     .k_BTHd = parts[1],
                                     .v_BTHd = parts[2],
                                     .weight_MKd = leaves[1],
                                     .bias_MK = leaves[2],
                                     .scale = 0.125,
                                     .rule = {.floor = 0.01, .added = 0.0}})
                                 .o_BTHd;
        const Tensor fused = model::gpu::causal_linear_attention(
            model::gpu::FusedAttention{.qkv_BTHd = leaves[0],
                                       .query_heads = query_heads,
                                       .weight_MKd = leaves[1],
                                       .bias_MK = leaves[2],
                                       .scale = 0.125,
                                       .rule = {.floor = 0.01, .added = 0.0}});
        EXPECT_TRUE(at::equal(fused, apart));
        const Tensor grad = randn(apart.sizes()).to(type);
        const auto of_apart = torch::autograd::grad({apart}, leaves, {grad}),
                   of_fused = torch::autograd::grad({fused}, leaves, {grad});
        for (size_t i = 0; i < leaves.size(); ++i)
          EXPECT_TRUE(at::equal(of_fused[i], of_apart[i])) << "gradient " << i;
      }
    }
  }
}

TEST(GpuCausal, AMapAtAnyAddress) {
  Problem p = make_problem({}, at::kBFloat16);
  const Tensor weight = p.inputs.weight_MKd;
  const Tensor odd =
      at::empty({weight.numel() + 1}, weight.options()).slice(0, 1).view(weight.sizes());
  odd.copy_(weight);
  const Tensor wanted = causal(p.inputs).o_BTHd;
  p.inputs.weight_MKd = odd;
  EXPECT_TRUE(at::equal(causal(p.inputs).o_BTHd, wanted));
}

TEST(GpuCausal, OneSequenceCutIntoSegments) {
  expect_exact({.batch = 1,
                .length = 8192,
                .query_heads = 1,
                .state_heads = 1,
                .key_heads = 1,
                .value_heads = 1,
                .state = true},
               at::kBFloat16,
               1e-2);
  expect_exact({.batch = 1, .length = 5000, .query_heads = 2, .v_mean = 4.0}, at::kBFloat16, 1e-2);
  for (const int64_t head_size : {64, 128}) {
    for (const int64_t features : {32, 64}) {
      for (const bool map : {true, false}) {
        expect_exact({.batch = 1,
                      .length = 5000,
                      .head_size = head_size,
                      .features = features,
                      .map = map,
                      .state = true,
                      .v_mean = 4.0},
                     at::kBFloat16,
                     1e-2);
      }
    }
  }
}

TEST(GpuCausal, GroupedQueriesOfOneSequenceCutIntoSegments) {
  for (const bool documents : {false, true}) {
    expect_exact(
        {.batch = 1, .length = 5000, .query_heads = 6, .state = true, .documents = documents},
        at::kBFloat16,
        1e-2);
  }
}

TEST(GpuCausal, SecondDerivativesAreRefused) {
  for (const auto type : {at::kBFloat16, at::kFloat}) {
    const Problem p = make_problem({}, type);
    const Tensor q = p.leaves[0].clone().requires_grad_();
    CausalInputs in = p.inputs;
    in.q_BTHd = q;
    const Tensor loss = causal(in).o_BTHd.sum();
    EXPECT_THAT(message_of([&] {
                  torch::autograd::grad(
                      {loss}, {q}, {}, /*retain_graph=*/true, /*create_graph=*/true);
                }),
                HasSubstr("causal: second derivatives are not there"));
    EXPECT_NO_THROW(torch::autograd::grad({loss}, {q}));
  }
}

TEST(GpuCausal, AThreadThatHasNotUsedTheGpu) {
  const Problem p = make_problem({}, at::kBFloat16);
  const Tensor wanted = causal(p.inputs).o_BTHd;
  Tensor actual;
  std::thread([&] { actual = causal(p.inputs).o_BTHd; }).join();
  EXPECT_TRUE(at::equal(actual, wanted));
}

TEST(GpuCausal, EluRule) {
  expect_exact({.length = 257, .features = 64, .map = false, .floor = 0.0, .added = 1e-6});
}

TEST(GpuCausal, DeadFeaturesGiveZeros) {
  const Case c{.length = 129, .dead = true};
  for (const auto type : {at::kBFloat16, at::kFloat, at::kDouble}) {
    const Problem p = make_problem(c, type);
    const Result result = run(p, c, false, [](const CausalInputs& in) { return causal(in); });
    EXPECT_EQ(result.outputs.o_BTHd.abs().max().item<float>(), 0.0F);
    for (const Tensor& gradient : result.gradients)
      EXPECT_EQ(gradient.abs().max().item<float>(), 0.0F);
  }
}

TEST(GpuCausal, GradientsAreThoseOfNumericalDifferences) {
  for (const Case& c :
       {Case{.batch = 1, .length = 37, .head_size = 32, .features = 5, .state = true},
        Case{.batch = 1,
        .length = 37,
        .head_size = 32,
        .features = 16,
        .map = false,
        .state = true,
        .documents = true}}) {
    SCOPED_TRACE(testing::Message() << c);
    const Problem p = make_problem(c, at::kDouble);
    const auto loss = [&](const std::vector<Tensor>& leaves) {
      const auto out = causal(with_leaves(p.inputs, leaves, c));
      return ((out.o_BTHd * p.grad_o).sum() + (out.s_BHKd * p.grad_s).sum() +
              (out.z_BHK * p.grad_z).sum())
          .item<double>();
    };
    const Result result = run(p, c, false, [](const CausalInputs& in) { return causal(in); });
    for (int repetition = 0; repetition < 10; ++repetition)
      test::expect_numerical_gradients(p.leaves, result.gradients, p.names, loss);
  }
}

TEST(GpuCausal, AgreesWithTheCpuKernel) {
  for (const int64_t head_size : {32, 64, 128}) {
    for (const bool map : {false, true}) {
      const Case c{.length = 333,
                   .query_heads = 4,
                   .state_heads = 2,
                   .head_size = head_size,
                   .map = map,
                   .state = true};
      SCOPED_TRACE(testing::Message() << c);
      const Problem p = make_problem(c, at::kFloat);
      const Result gpu = run(p, c, false, [](const CausalInputs& in) { return causal(in); });
      const Result cpu = run(p, c, false, [&](const CausalInputs& in) {
        const auto features = [&](const Tensor& x, int64_t heads, double scale) {
          if (!map) return x.cpu();
          const Tensor y = at::einsum(
              "bthd,hkd->bthk", {spread(x.cpu(), heads, 2), spread(in.weight_MKd.cpu(), heads, 0)});
          return at::relu(y.mul(scale).add(spread(in.bias_MK.cpu(), heads, 0)));
        };
        const model::LinearAttentionState initial{in.initial_s_BMKd.cpu(), in.initial_z_BMK.cpu()};
        const auto out =
            model::causal_linear_attention(features(in.q_BTHd, c.query_heads, in.scale),
                                           features(in.k_BTHd, c.state_heads, 1.0),
                                           in.v_BTHd.cpu(),
                                           &initial,
                                           in.rule);
        return CausalOutputs{out.o_BTHV.cuda(), out.state.s_BHKV.cuda(), out.state.z_BHK.cuda()};
      });
      EXPECT_LE(relative_error(gpu.outputs.o_BTHd, cpu.outputs.o_BTHd), 5e-6);
      for (size_t i = 0; i < p.names.size(); ++i)
        EXPECT_LE(relative_error(gpu.gradients[i], cpu.gradients[i]), 2e-5) << p.names[i];
    }
  }
}

TEST(GpuCausal, GraphReplayEqualsEagerBitwise) {
  for (const Case& c : {Case{.batch = 1, .length = 512},
                        Case{.batch = 1, .length = 6000},
                        Case{.batch = 1, .length = 500, .features = 64, .state = true},
                        Case{.length = 300, .head_size = 128, .features = 64},
                        Case{.length = 300, .head_size = 128, .map = false, .state = true},
                        Case{.length = 300, .features = 128, .map = false},
                        Case{.length = 300, .head_size = 32, .documents = true},
                        Case{.length = 300, .head_size = 128, .features = 128}}) {
    SCOPED_TRACE(testing::Message() << c);
    const Problem p = make_problem(c, at::kBFloat16);
    const auto step = [&] {
      return run(p, c, false, [](const CausalInputs& in) { return causal(in); });
    };
    const Result eager = step();
    const auto stream = c10::cuda::getStreamFromPool();
    const c10::cuda::CUDAStreamGuard guard(stream);
    step();
    at::cuda::CUDAGraph graph;
    graph.capture_begin();
    const Result captured = step();
    graph.capture_end();
    captured.outputs.o_BTHd.fill_(std::nan(""));
    graph.replay();
    stream.synchronize();
    EXPECT_TRUE(at::equal(eager.outputs.o_BTHd, captured.outputs.o_BTHd));
    for (size_t i = 0; i < p.names.size(); ++i)
      EXPECT_TRUE(at::equal(eager.gradients[i], captured.gradients[i])) << p.names[i];
  }
}

/// Every multiprocessor busy, many times: a race between warps that wait for each other shows as a
/// pass that differs.
TEST(GpuCausal, FullSizePassesRepeatBitwise) {
  for (const auto& [batch, length, head_size, features] :
       std::vector<std::array<int64_t, 4>>{{8, 2048, 64, 32},
                                           {8, 2048, 64, 64},
                                           {8, 2048, 128, 64},
                                           {1, 16384, 64, 32},
                                           {40, 200, 64, 32}}) {
    const int64_t heads = 16;
    const auto options = at::TensorOptions(at::kCUDA).dtype(at::kBFloat16);
    const auto random = [&](at::IntArrayRef sizes) { return at::randn(sizes, options); };
    const std::vector<Tensor> leaves{random({batch, length, heads, head_size}).requires_grad_(),
                                     random({batch, length, heads, head_size}).requires_grad_(),
                                     random({batch, length, heads, head_size}).requires_grad_(),
                                     random({heads, features, head_size}).div_(8).requires_grad_(),
                                     random({heads, features}).requires_grad_()};
    const Tensor grad_o = random({batch, length, heads, head_size});
    const auto pass = [&] {
      const Tensor o = causal({.q_BTHd = leaves[0],
                               .k_BTHd = leaves[1],
                               .v_BTHd = leaves[2],
                               .weight_MKd = leaves[3],
                               .bias_MK = leaves[4],
                               .rule = {.floor = 0.01, .added = 0.0}})
                           .o_BTHd;
      std::vector<Tensor> results = torch::autograd::grad({o}, leaves, {grad_o});
      results.push_back(o.detach());
      return results;
    };
    const std::vector<Tensor> first = pass();
    for (int repetition = 0; repetition < 100; ++repetition) {
      const std::vector<Tensor> again = pass();
      for (size_t i = 0; i < first.size(); ++i) {
        ASSERT_TRUE(at::equal(again[i], first[i]))
            << "B" << batch << " T" << length << " d" << head_size << " k" << features
            << ", result " << i << ", repetition " << repetition;
      }
    }
  }
}

TEST(GpuCausal, BadInputIsRefusedByName) {
  const CausalInputs good = make_problem({}, at::kBFloat16).inputs;
  const auto refusal = [&](const std::function<void(CausalInputs&)>& spoil) {
    return message_of([&] {
      CausalInputs in = good;
      spoil(in);
      causal(in);
    });
  };
  EXPECT_THAT(refusal([](auto& in) { in.q_BTHd = in.q_BTHd.cpu(); }),
              HasSubstr("q is on cpu, allowed: cuda"));
  EXPECT_THAT(refusal([](auto& in) { in.v_BTHd = in.v_BTHd.cpu(); }),
              HasSubstr("v is on cpu, q is on cuda:0, allowed: one device"));
  EXPECT_THAT(refusal([](auto& in) { in.k_BTHd = in.k_BTHd.cpu(); }),
              HasSubstr("k is on cpu, q is on cuda:0, allowed: one device"));
  EXPECT_THAT(refusal([](auto& in) { in.weight_MKd = in.weight_MKd.cpu(); }),
              HasSubstr("weight is on cpu, q is on cuda:0, allowed: one device"));
  EXPECT_THAT(refusal([](auto& in) { in.q_BTHd = in.q_BTHd.to(at::kHalf); }),
              HasSubstr("q has dtype Half, allowed: bfloat16, float32, float64"));
  EXPECT_THAT(refusal([](auto& in) { in.k_BTHd = in.k_BTHd.to(at::kFloat); }),
              HasSubstr("k has dtype Float, q has BFloat16, allowed: the same"));
  EXPECT_THAT(refusal([](auto& in) { in.v_BTHd = in.v_BTHd.slice(3, 0, 48); }),
              HasSubstr("v has head size 48, allowed: 32, 64, 128"));
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
  EXPECT_THAT(refusal([](auto& in) { in.k_BTHd = in.k_BTHd.slice(1, 0, 10); }),
              HasSubstr("k has batch and length 2 x 10, q has 2 x 200"));
  EXPECT_THAT(
      refusal([](auto& in) { in.q_BTHd = in.q_BTHd.repeat_interleave(2, 3).slice(3, 0, 128, 2); }),
      HasSubstr("q has stride 2 in its last dimension, allowed: 1"));
  EXPECT_THAT(refusal([](auto& in) {
                in.q_BTHd = at::empty({2, 200, 2, 65}, in.q_BTHd.options()).slice(3, 0, 64);
              }),
              HasSubstr("q has stride 130 in dimension 1, allowed: multiples of 8 (16 bytes)"));
  EXPECT_THAT(refusal([](auto& in) {
                in.q_BTHd = at::cat({in.q_BTHd, in.q_BTHd.slice(2, 0, 1)}, 2);
              }),
              HasSubstr("heads of q, the map, k, v are 3, 2, 2, 2"));
  EXPECT_THAT(refusal([](auto& in) { in.rule.floor = 0.0; }), HasSubstr("floor is 0 and added 0"));
  EXPECT_THAT(refusal([](auto& in) {
                in.document_start_BT = at::zeros({2, 200}, in.q_BTHd.options().dtype(at::kLong));
              }),
              HasSubstr("document_start has dtype Long, allowed: int32"));
  EXPECT_THAT(refusal([](auto& in) {
                in.initial_s_BMKd = at::zeros({2, 2, 32, 64}, in.q_BTHd.options());
              }),
              HasSubstr("initial_s and initial_z come together"));
}

}  // namespace
}  // namespace t2r::ops
