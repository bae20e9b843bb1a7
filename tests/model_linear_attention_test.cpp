#include "model/attention/linear_attention.h"

#include <ATen/CPUGeneratorImpl.h>
#include <ATen/Parallel.h>
#include <gtest/gtest.h>
#include <torch/csrc/autograd/autograd.h>

#include "base/error.h"
#include "model/attention/feature_map.h"
#include "model/attention/linear_attention_naive.h"
#include "tests/model_support.h"

namespace t2r::model {
namespace {

using test::max_relative_error;
using torch::Tensor;

struct Case {
  int64_t batch, length, query_heads, state_heads, value_heads, features, values;
};

struct Inputs {
  Tensor phi_q, phi_k, v;
  LinearAttentionState initial;
  std::vector<Tensor> all() const { return {phi_q, phi_k, v, initial.s_BHKV, initial.z_BHK}; }
};

// Features are relu of normal numbers, as the map makes them: about half are exactly zero.
Inputs random_inputs(const Case& c,
                     torch::ScalarType dtype,
                     double value_mean = 0.0,
                     double feature_scale = 1.0) {
  const auto leaf = [](const Tensor& x) { return x.detach().clone().requires_grad_(true); };
  const torch::TensorOptions options = dtype;
  Inputs inputs;
  inputs.phi_q = leaf(torch::randn({c.batch, c.length, c.query_heads, c.features}, options).relu() *
                      feature_scale);
  inputs.phi_k = leaf(torch::randn({c.batch, c.length, c.state_heads, c.features}, options).relu() *
                      feature_scale);
  inputs.v = leaf(torch::randn({c.batch, c.length, c.value_heads, c.values}, options) + value_mean);
  inputs.initial = {leaf(torch::randn({c.batch, c.state_heads, c.features, c.values}, options)),
                    leaf(torch::rand({c.batch, c.state_heads, c.features}, options))};
  return inputs;
}

using Form = LinearAttentionOutput (*)(const Tensor&,
                                       const Tensor&,
                                       const Tensor&,
                                       const LinearAttentionState*,
                                       const DenominatorRule&);

struct Evaluation {
  std::vector<Tensor> outputs;    // o, S, z
  std::vector<Tensor> gradients;  // of phi_q, phi_k, v, initial S, initial z
};

// A form's outputs and its gradients for fixed random cotangents of all three outputs.
Evaluation evaluate(Form form, const Inputs& inputs, const DenominatorRule& rule) {
  const LinearAttentionOutput result =
      form(inputs.phi_q, inputs.phi_k, inputs.v, &inputs.initial, rule);
  const std::vector<Tensor> outputs{result.o_BTHV, result.state.s_BHKV, result.state.z_BHK};
  torch::manual_seed(7);
  std::vector<Tensor> cotangents;
  for (const Tensor& output : outputs) {  // the same numbers for every dtype
    cotangents.push_back(torch::randn(output.sizes(), torch::kFloat64).to(output.scalar_type()));
  }
  return {outputs, torch::autograd::grad(outputs, inputs.all(), cotangents)};
}

void expect_same(const Evaluation& actual,
                 const Evaluation& expected,
                 double tolerance,
                 const std::string& what) {
  const char* output_names[] = {"o", "S", "z"};
  const char* gradient_names[] = {"dphi_q", "dphi_k", "dv", "dS0", "dz0"};
  for (size_t i = 0; i < expected.outputs.size(); ++i) {
    ASSERT_EQ(actual.outputs[i].sizes(), expected.outputs[i].sizes()) << what;
    EXPECT_LE(max_relative_error(actual.outputs[i], expected.outputs[i]), tolerance)
        << what << " " << output_names[i];
  }
  for (size_t i = 0; i < expected.gradients.size(); ++i) {
    ASSERT_EQ(actual.gradients[i].sizes(), expected.gradients[i].sizes()) << what;
    EXPECT_LE(max_relative_error(actual.gradients[i], expected.gradients[i]), tolerance)
        << what << " " << gradient_names[i];
  }
}

const std::vector<Case> kCases = {
    {1, 1, 1, 1, 1, 1, 1},      // the smallest there is
    {2, 1, 4, 2, 2, 32, 64},    // one token
    {2, 63, 2, 2, 2, 8, 16},    // one short of a chunk
    {1, 64, 3, 3, 3, 32, 64},   // a whole chunk
    {1, 65, 2, 2, 2, 32, 64},   // one more
    {2, 200, 4, 2, 2, 7, 5},    // odd sizes everywhere, grouped queries
    {1, 129, 6, 6, 2, 17, 33},  // a map per query head
    {1, 131, 6, 3, 1, 4, 128},  // both kinds of grouping
    {3, 17, 2, 1, 1, 100, 20},
};

std::string name_of(const Case& c) {
  return concat("B",
                c.batch,
                " T",
                c.length,
                " Hq",
                c.query_heads,
                " Hs",
                c.state_heads,
                " Hv",
                c.value_heads,
                " K",
                c.features,
                " V",
                c.values);
}

TEST(LinearAttention, ThreeFormsAgreeInFloat64) {
  torch::manual_seed(1);
  for (const Case& c : kCases) {
    const Inputs inputs = random_inputs(c, torch::kFloat64);
    const DenominatorRule rule{.floor = 1e-2};
    const Evaluation expected = evaluate(causal_linear_attention_parallel, inputs, rule);
    // Rounding of float64 through a division by denominators down to 1e-2 leaves 1e-10 of room.
    expect_same(
        evaluate(causal_linear_attention, inputs, rule), expected, 1e-10, "chunked " + name_of(c));
    expect_same(evaluate(causal_linear_attention_recurrent, inputs, rule),
                expected,
                1e-10,
                "recurrent " + name_of(c));
  }
}

TEST(LinearAttention, Float32StaysNearFloat64) {
  torch::manual_seed(2);
  for (const double mean : {0.0, 1.0, 4.0}) {
    for (const Case& c : kCases) {
      const Inputs exact = random_inputs(c, torch::kFloat64, mean);
      Inputs rounded;
      const auto leaf = [](const Tensor& x) {
        return x.detach().to(torch::kFloat32).requires_grad_(true);
      };
      rounded.phi_q = leaf(exact.phi_q);
      rounded.phi_k = leaf(exact.phi_k);
      rounded.v = leaf(exact.v);
      rounded.initial = {leaf(exact.initial.s_BHKV), leaf(exact.initial.z_BHK)};
      const DenominatorRule rule{.floor = 1e-2};
      // 2e-5: the project's bar for float32 (KERNELS.md), of the largest element.
      expect_same(evaluate(causal_linear_attention, rounded, rule),
                  evaluate(causal_linear_attention_parallel, exact, rule),
                  2e-5,
                  concat("mean ", mean, " ", name_of(c)));
    }
  }
}

TEST(LinearAttention, SplittingTheSequenceAnywhereChangesNothing) {
  torch::manual_seed(3);
  const Case c{2, 190, 4, 2, 2, 9, 6};
  const DenominatorRule rule{.floor = 1e-2};
  for (int trial = 0; trial < 10; ++trial) {
    const Inputs inputs = random_inputs(c, torch::kFloat64);
    const Evaluation whole = evaluate(causal_linear_attention, inputs, rule);
    const auto split_form = [](const Tensor& q,
                               const Tensor& k,
                               const Tensor& v,
                               const LinearAttentionState* initial,
                               const DenominatorRule& r) -> LinearAttentionOutput {
      LinearAttentionState state = *initial;
      std::vector<Tensor> parts;
      for (int64_t begin = 0; begin < q.size(1);) {
        const int64_t count =
            std::min<int64_t>(q.size(1) - begin, 1 + torch::randint(90, {1}).item<int64_t>());
        const LinearAttentionOutput part = causal_linear_attention(q.narrow(1, begin, count),
                                                                   k.narrow(1, begin, count),
                                                                   v.narrow(1, begin, count),
                                                                   &state,
                                                                   r);
        parts.push_back(part.o_BTHV);
        state = part.state;
        begin += count;
      }
      return {torch::cat(parts, 1), state};
    };
    torch::manual_seed(100 + trial);
    expect_same(evaluate(split_form, inputs, rule), whole, 1e-11, concat("trial ", trial));
  }
}

TEST(LinearAttention, GradientsMatchNumericalOnes) {
  torch::manual_seed(4);
  const Inputs inputs = random_inputs({1, 67, 2, 2, 1, 3, 2}, torch::kFloat64);
  const DenominatorRule rule{.floor = 0.5};  // some denominators lie on the floor
  const Evaluation analytic = evaluate(causal_linear_attention, inputs, rule);
  const auto value = [&] {
    const LinearAttentionOutput result =
        causal_linear_attention(inputs.phi_q, inputs.phi_k, inputs.v, &inputs.initial, rule);
    torch::manual_seed(7);
    Tensor sum = torch::zeros({}, torch::kFloat64);
    for (const Tensor& output : {result.o_BTHV, result.state.s_BHKV, result.state.z_BHK}) {
      sum = sum + (output * torch::randn_like(output, torch::MemoryFormat::Contiguous)).sum();
    }
    return sum.item<double>();
  };
  const std::vector<Tensor> leaves = inputs.all();
  constexpr double kStep = 1e-6;
  for (size_t i = 0; i < leaves.size(); ++i) {
    const torch::NoGradGuard no_grad;
    double* data = leaves[i].data_ptr<double>();
    const Tensor gradient = analytic.gradients[i].contiguous();
    for (int64_t j = 0; j < leaves[i].numel(); j += 1 + leaves[i].numel() / 40) {
      const double kept = data[j];
      data[j] = kept + kStep;
      const double above = value();
      data[j] = kept - kStep;
      const double below = value();
      data[j] = kept;
      EXPECT_NEAR((above - below) / (2 * kStep), gradient.data_ptr<double>()[j], 1e-5)
          << "input " << i << " element " << j;
    }
  }
}

TEST(LinearAttention, DeadFeaturesGiveZeroAndFiniteGradients) {
  const Case c{1, 70, 2, 2, 2, 8, 4};
  Inputs inputs = random_inputs(c, torch::kFloat32, 4.0);
  {
    const torch::NoGradGuard no_grad;
    inputs.phi_q.zero_();
    inputs.phi_k.zero_();
    inputs.initial.s_BHKV.zero_();
    inputs.initial.z_BHK.zero_();
  }
  const Evaluation result = evaluate(causal_linear_attention, inputs, {.floor = 1e-2});
  EXPECT_EQ(result.outputs[0].abs().max().item<float>(), 0.0f);
  for (const Tensor& gradient : result.gradients)
    EXPECT_TRUE(gradient.isfinite().all().item<bool>());
  EXPECT_EQ(result.gradients[2].isfinite().all().item<bool>(), true);
}

TEST(LinearAttention, ClampedDenominatorHasNoGradient) {
  // One token, one feature: o = q k v / max(q k, floor). Below the floor do/dq = k v / floor, above
  // it 0.
  const auto run = [](double q_value) {
    const Tensor q = torch::full({1, 1, 1, 1}, q_value, torch::kFloat64).requires_grad_(true);
    const Tensor k = torch::ones({1, 1, 1, 1}, torch::kFloat64),
                 v = torch::full({1, 1, 1, 1}, 3.0, torch::kFloat64);
    causal_linear_attention(q, k, v, nullptr, {.floor = 0.5}).o_BTHV.sum().backward();
    return q.grad().item<double>();
  };
  EXPECT_DOUBLE_EQ(run(0.25), 6.0);
  EXPECT_NEAR(run(2.0), 0.0, 1e-15);
}

TEST(LinearAttention, StridedViewsOfAFusedProjectionGiveTheSame) {
  torch::manual_seed(5);
  const Tensor fused = torch::rand({2, 75, 3 * 2 * 8}, torch::kFloat32);
  const std::vector<Tensor> parts = fused.view({2, 75, 6, 8}).split(2, 2);
  const auto strided = causal_linear_attention(parts[0], parts[1], parts[2], nullptr, {});
  const auto copied = causal_linear_attention(
      parts[0].contiguous(), parts[1].contiguous(), parts[2].contiguous(), nullptr, {});
  EXPECT_TRUE(strided.o_BTHV.equal(copied.o_BTHV));
}

TEST(LinearAttention, ThreadsDoNotChangeBits) {
  torch::manual_seed(6);
  const Inputs inputs = random_inputs({3, 150, 4, 2, 2, 16, 32}, torch::kFloat32);
  at::set_num_threads(1);
  const Evaluation one = evaluate(causal_linear_attention, inputs, {});
  at::set_num_threads(2);
  const Evaluation two = evaluate(causal_linear_attention, inputs, {});
  for (size_t i = 0; i < one.outputs.size(); ++i) EXPECT_TRUE(one.outputs[i].equal(two.outputs[i]));
  for (size_t i = 0; i < one.gradients.size(); ++i)
    EXPECT_TRUE(one.gradients[i].equal(two.gradients[i]));
}

TEST(LinearAttention, RefusesWhatDoesNotFitAndNamesIt) {
  const auto message = [](const Tensor& q, const Tensor& k, const Tensor& v) -> std::string {
    try {
      causal_linear_attention(q, k, v, nullptr, {});
    } catch (const ContractError& error) {
      return error.what();
    }
    return "nothing thrown";
  };
  const auto ones = [](std::vector<int64_t> sizes) { return torch::ones(sizes, torch::kFloat32); };
  EXPECT_NE(message(ones({1, 4, 2}), ones({1, 4, 2, 8}), ones({1, 4, 2, 8}))
                .find("phi_q has 3 dimensions"),
            std::string::npos);
  EXPECT_NE(message(ones({1, 4, 2, 8}), ones({1, 4, 2, 7}), ones({1, 4, 2, 8}))
                .find("phi_k has 7 features, phi_q has 8"),
            std::string::npos);
  EXPECT_NE(
      message(ones({1, 4, 3, 8}), ones({1, 4, 2, 8}), ones({1, 4, 2, 8})).find("3, 2, 2, allowed"),
      std::string::npos);
  EXPECT_NE(message(ones({1, 4, 2, 8}), ones({1, 5, 2, 8}), ones({1, 4, 2, 8}))
                .find("phi_k has batch and length 1 x 5"),
            std::string::npos);
  EXPECT_NE(message(ones({1, 4, 2, 0}), ones({1, 4, 2, 0}), ones({1, 4, 2, 8})).find("K 0"),
            std::string::npos);
  EXPECT_NE(message(ones({1, 4, 2, 8}).to(torch::kHalf), ones({1, 4, 2, 8}), ones({1, 4, 2, 8}))
                .find("float32, float64"),
            std::string::npos);
}

DecoderConfig one_layer(int64_t heads, int64_t head_dim, const LinearAttentionConfig& linear) {
  DecoderConfig config;
  config.num_heads = config.num_kv_heads = heads;
  config.head_dim = head_dim;
  config.linear = linear;
  return config;
}

TEST(EluMap, SmallFeaturesAreNotLostInBfloat16) {
  const DecoderConfig config = one_layer(1, 64, {.feature_map = "elu"});
  ParameterSet parameters;
  const auto map = make_feature_map(config, "", 0, parameters);
  const Tensor x = torch::linspace(-12.0, 4.0, 64).to(torch::kBFloat16).view({1, 1, 1, 64});
  const Tensor exact = torch::elu(x.to(torch::kFloat64)) + 1.0;
  for (const Tensor& features : {map->query_features(x, 1.0), map->key_features(x)}) {
    const Tensor error = (features.to(torch::kFloat64) - exact).abs() / exact;
    EXPECT_LT(error.max().item<double>(), 1e-2);
  }
}

Tensor hedgehog_by_definition(const Tensor& x, const Tensor& weight_Rd, const Tensor& bias_R) {
  const Tensor y = at::linear(x, weight_Rd, bias_R);
  return torch::cat({y.softmax(-1), (-y).softmax(-1)}, -1);
}

TEST(HedgehogMap, StartsAsBothSoftmaxesOfTheVectorItself) {
  torch::manual_seed(11);
  for (const int64_t features : {12, 8}) {  // all of the vector, or its first entries
    ParameterSet parameters;
    const auto map = make_feature_map(
        one_layer(3, 6, {.feature_map = "hedgehog", .feature_size = features}), "", 0, parameters);
    torch::Generator generator = at::make_generator<at::CPUGeneratorImpl>(1);
    map->initialize(generator);
    EXPECT_EQ(map->feature_size(), features);
    EXPECT_EQ(map->state_heads(), 3);
    const Tensor x = 2.0 * torch::randn({2, 5, 3, 6});
    const Tensor y = x.narrow(3, 0, features / 2);
    const Tensor expected = torch::cat({y.softmax(-1), (-y).softmax(-1)}, -1);
    EXPECT_LE(max_relative_error(map->query_features(x, 0.5), expected), 1e-6);
    EXPECT_LE(max_relative_error(map->key_features(x), expected), 1e-6);
  }
}

TEST(HedgehogMap, EveryHeadHasItsOwnMatrixOrSharesOne) {
  torch::manual_seed(12);
  for (const bool per_query : {false, true}) {
    DecoderConfig config = one_layer(2, 6, {.feature_map = "hedgehog", .feature_size = 10});
    config.num_heads = 4;
    config.linear->map_per_query_head = per_query;
    ParameterSet parameters;
    const auto map = make_feature_map(config, "", 0, parameters);
    for (Parameter& parameter : parameters.all()) parameter.value.detach().normal_();
    const Tensor &weight_MRd = parameters.all()[0].value, &bias_MR = parameters.all()[1].value;
    const int64_t maps = per_query ? 4 : 2;
    ASSERT_EQ(weight_MRd.sizes(), (std::vector<int64_t>{maps, 5, 6}));
    const Tensor q = torch::randn({2, 7, 4, 6}), k = torch::randn({2, 7, 2, 6});
    const Tensor phi_q = map->query_features(q, 1.0), phi_k = map->key_features(k);
    ASSERT_EQ(phi_k.size(2), maps);
    for (int64_t head = 0; head < 4; ++head) {
      const int64_t m = head * maps / 4;
      EXPECT_LE(
          max_relative_error(phi_q.select(2, head),
                             hedgehog_by_definition(q.select(2, head), weight_MRd[m], bias_MR[m])),
          1e-6);
    }
    for (int64_t m = 0; m < maps; ++m) {
      EXPECT_LE(max_relative_error(
                    phi_k.select(2, m),
                    hedgehog_by_definition(k.select(2, m * 2 / maps), weight_MRd[m], bias_MR[m])),
                1e-6);
    }
  }
}

// Vectors of length up to 40 make features so sharp that many are below 1e-6 and similarities
// small.
TEST(HedgehogMap, ThreeFormsAgreeForFlatAndForSharpFeatures) {
  torch::manual_seed(13);
  ParameterSet parameters;
  const auto map = make_feature_map(
      one_layer(2, 16, {.feature_map = "hedgehog", .feature_size = 32}), "", 0, parameters);
  torch::Generator generator = at::make_generator<at::CPUGeneratorImpl>(1);
  map->initialize(generator);
  for (const double scale : {0.1, 1.0, 10.0}) {
    Inputs inputs = random_inputs({2, 131, 2, 2, 2, 32, 9}, torch::kFloat64);
    {
      const torch::NoGradGuard no_grad;
      inputs.phi_q.copy_(map->query_features(scale * torch::randn({2, 131, 2, 16}), 1.0));
      inputs.phi_k.copy_(map->key_features(scale * torch::randn({2, 131, 2, 16})));
      inputs.initial.s_BHKV.zero_();
      inputs.initial.z_BHK.zero_();
    }
    const DenominatorRule rule = map->denominator_rule();
    const Evaluation expected = evaluate(causal_linear_attention_parallel, inputs, rule);
    EXPECT_TRUE(expected.outputs[0].isfinite().all().item<bool>());
    // As in ThreeFormsAgreeInFloat64; denominators go down to 1e-6 here.
    expect_same(evaluate(causal_linear_attention, inputs, rule), expected, 1e-9, "chunked");
    expect_same(
        evaluate(causal_linear_attention_recurrent, inputs, rule), expected, 1e-9, "recurrent");
  }
}

TEST(HedgehogMap, SmallFeaturesAreNotLostInBfloat16) {
  ParameterSet parameters;
  const auto map = make_feature_map(
      one_layer(1, 64, {.feature_map = "hedgehog", .feature_size = 128}), "", 0, parameters);
  torch::Generator generator = at::make_generator<at::CPUGeneratorImpl>(1);
  map->initialize(generator);
  parameters.move_to({.dtype = torch::kBFloat16});
  const Tensor x = torch::linspace(-20.0, 12.0, 64).to(torch::kBFloat16).view({1, 1, 1, 64});
  const Tensor y = x.to(torch::kFloat64);
  const Tensor exact = torch::cat({y.softmax(-1), (-y).softmax(-1)}, -1);
  const Tensor error = (map->key_features(x).to(torch::kFloat64) - exact).abs() / exact;
  EXPECT_LT(error.max().item<double>(), 1e-2);  // features go down to 1e-14
}

TEST(HedgehogMap, SizesThatItCannotHaveAreRefused) {
  const auto message = [](int64_t features) -> std::string {
    DecoderConfig config = test::tiny_config("gpt2");
    config.linear = LinearAttentionConfig{.feature_map = "hedgehog", .feature_size = features};
    try {
      config.validate();
    } catch (const ConfigError& error) {
      return error.what();
    }
    return "nothing thrown";
  };
  EXPECT_EQ(message(12), "nothing thrown");
  EXPECT_NE(message(7).find("feature_size = 7, allowed: even, at most 12"), std::string::npos);
  EXPECT_NE(message(14).find("feature_size = 14, allowed: even, at most 12"), std::string::npos);
}

}  // namespace
}  // namespace t2r::model
