// Training cost of one attention layer on the CPU, forward and backward, by sequence length: linear
// attention in its chunked form (features, map and all) beside softmax attention (LibTorch's
// scaled_dot_product_attention). The batch shrinks as the sequence grows, so that every row does
// the same number of tokens; per_token should be flat for the chunked form.

#include <benchmark/benchmark.h>
#include <torch/csrc/autograd/autograd.h>

#include "model/attention/feature_map.h"
#include "model/attention/linear_attention.h"

namespace t2r::model {
namespace {

using torch::Tensor;

constexpr int64_t kTokens = 8192;
constexpr int64_t kHeads = 4;
constexpr int64_t kHeadDim = 64;
constexpr int64_t kFeatures = 32;

struct Heads {
  Tensor q_BTHd, k_BTHd, v_BTHd, cotangent;
};

Heads random_heads(int64_t length) {
  const auto leaf = [&] {
    return torch::randn({kTokens / length, length, kHeads, kHeadDim}).requires_grad_(true);
  };
  return {leaf(), leaf(), leaf(), torch::randn({kTokens / length, length, kHeads, kHeadDim})};
}

void set_rate(benchmark::State& state) {
  state.counters["per_token"] =
      benchmark::Counter(static_cast<double>(state.iterations()) * kTokens,
                         benchmark::Counter::kIsRate | benchmark::Counter::kInvert);
}

void BM_ChunkedT2r(benchmark::State& state) {
  const Heads heads = random_heads(state.range(0));
  DecoderConfig config;
  config.num_heads = config.num_kv_heads = kHeads;
  config.head_dim = kHeadDim;
  config.linear = LinearAttentionConfig{.feature_map = "t2r", .feature_size = kFeatures};
  ParameterSet parameters;
  const auto map = make_feature_map(config, "map", 0, parameters);
  torch::Generator generator = torch::globalContext().defaultGenerator(torch::kCPU);
  map->initialize(generator);
  std::vector<Tensor> leaves{heads.q_BTHd, heads.k_BTHd, heads.v_BTHd};
  for (const Parameter& parameter : parameters.all()) leaves.push_back(parameter.value);
  for (auto _ : state) {
    const Tensor o = causal_linear_attention(map->query_features(heads.q_BTHd, 0.125),
                                             map->key_features(heads.k_BTHd),
                                             heads.v_BTHd,
                                             nullptr,
                                             map->denominator_rule())
                         .o_BTHV;
    benchmark::DoNotOptimize(torch::autograd::grad({o}, leaves, {heads.cotangent}));
  }
  set_rate(state);
}

void BM_Softmax(benchmark::State& state) {
  const Heads heads = random_heads(state.range(0));
  for (auto _ : state) {
    const Tensor o = at::scaled_dot_product_attention(heads.q_BTHd.transpose(1, 2),
                                                      heads.k_BTHd.transpose(1, 2),
                                                      heads.v_BTHd.transpose(1, 2),
                                                      {},
                                                      0.0,
                                                      /*is_causal=*/true)
                         .transpose(1, 2);
    benchmark::DoNotOptimize(
        torch::autograd::grad({o}, {heads.q_BTHd, heads.k_BTHd, heads.v_BTHd}, {heads.cotangent}));
  }
  set_rate(state);
}

BENCHMARK(BM_ChunkedT2r)
    ->RangeMultiplier(2)
    ->Range(256, 4096)
    ->Unit(benchmark::kMillisecond)
    ->UseRealTime();
BENCHMARK(BM_Softmax)
    ->RangeMultiplier(2)
    ->Range(256, 4096)
    ->Unit(benchmark::kMillisecond)
    ->UseRealTime();

}  // namespace
}  // namespace t2r::model

BENCHMARK_MAIN();
