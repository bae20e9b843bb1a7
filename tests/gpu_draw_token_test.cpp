// The choice of a token on the GPU: the first of the largest, or exactly what the CPU draws from
// the same logits.
#include <ATen/cuda/CUDAGraph.h>
#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <torch/types.h>

#include <limits>

#include "model/gpu_ops.h"
#include "model/ops/draw_token_op.h"
#include "model/search/sampling.h"
#include "tests/gpu_support.h"

namespace t2r::ops {
namespace {

using model::SamplingOptions;
using test::message_of;
using testing::HasSubstr;

/// What a step of generation keeps on the device.
struct Places {
  Tensor tokens, history, position;

  Places(const Tensor& logits, int64_t position)
      : tokens(at::full({logits.size(0)}, -7, logits.options().dtype(at::kLong))),
        history(at::full({4, logits.size(0)}, -7, tokens.options())),
        position(at::full({1}, position, tokens.options())) {}
};

/// Drawn on the GPU; checks that the history says the same.
Tensor drawn(const Tensor& logits, int64_t position, const SamplingOptions& options) {
  const Places places(logits, position);
  model::gpu::draw_token(logits, places.tokens, places.history, places.position, options);
  EXPECT_TRUE(at::equal(places.history[position % 4], places.tokens));
  EXPECT_EQ(places.history.eq(-7).sum().item<int64_t>(), 3 * logits.size(0));
  return places.tokens.cpu();
}

Tensor random_logits(int64_t rows, int64_t vocabulary, at::ScalarType type, bool ties) {
  const auto options = at::TensorOptions(at::kCUDA).dtype(at::kFloat);
  const Tensor logits = ties ? at::randint(-3, 4, {rows, vocabulary}, options)
                             : at::randn({rows, vocabulary}, options).mul(4.0);
  return logits.to(type);
}

std::vector<SamplingOptions> ways_to_sample() {
  return {{.temperature = 1.0},
          {.temperature = 0.7, .top_k = 50, .seed = 1},
          {.temperature = 0.7, .top_p = 0.95, .seed = 2},
          {.temperature = 1.3, .top_k = 40, .top_p = 0.9, .seed = 3},
          {.temperature = 1.0, .top_k = 1, .seed = 4},
          {.temperature = 30.0, .top_k = 3000, .top_p = 0.5, .seed = 0xFFFFFFFFFFFFFFFF},
          {.temperature = 1e-3, .top_p = 1e-9, .seed = 5},
          {.temperature = 1e300, .top_p = 0.999999, .seed = 6}};
}

TEST(GpuDrawToken, GreedyIsTheFirstOfTheLargest) {
  for (const auto type : {at::kFloat, at::kBFloat16}) {
    for (const int64_t vocabulary : {1, 31, 1000, 49152, 50257}) {
      // Few different values: many ties.
      const Tensor logits = random_logits(5, vocabulary, type, true);
      EXPECT_TRUE(at::equal(drawn(logits, 6, {}), logits.cpu().to(at::kFloat).argmax(-1)))
          << type << " " << vocabulary;
    }
  }
}

TEST(GpuDrawToken, DrawsWhatTheCpuDraws) {
  at::manual_seed(11);
  for (const int64_t vocabulary : {1, 3, 31, 1000, 4095, 4097, 49152, 50257, 128256, 262144}) {
    for (const auto type : {at::kFloat, at::kBFloat16}) {
      for (const bool ties : {false, true}) {
        const Tensor logits = random_logits(5, vocabulary, type, ties), on_cpu = logits.cpu();
        for (const SamplingOptions& options : ways_to_sample()) {
          SCOPED_TRACE(testing::Message()
                       << vocabulary << " " << type << " ties " << ties << " temperature "
                       << options.temperature << " k " << options.top_k << " p " << options.top_p);
          EXPECT_TRUE(at::equal(drawn(logits, 6, options), draw_tokens(on_cpu, 6, options)));
        }
      }
    }
  }
}

TEST(GpuDrawToken, DrawsWhatTheCpuDrawsForManySeedsPositionsAndRows) {
  at::manual_seed(12);
  const Tensor logits = random_logits(16, 50257, at::kFloat, false), on_cpu = logits.cpu();
  for (int64_t i = 0; i < 60; ++i) {
    const SamplingOptions options{.temperature = 0.5 + 0.02 * double(i),
                                  .top_k = i % 3 == 0 ? 0 : 10 * i,
                                  .top_p = i % 2 == 0 ? 1.0 : 0.9,
                                  .seed = uint64_t(i * i)};
    const int64_t position = i % 5 == 0 ? (int64_t{3} << 32) + i : i;
    EXPECT_TRUE(at::equal(drawn(logits, position, options), draw_tokens(on_cpu, position, options)))
        << i;
  }
  for (const int64_t rows :
       {1, 100, 700}) {  // a cluster a row, several waves of them, a block a row
    const Tensor more = random_logits(rows, 5003, at::kBFloat16, false);
    for (const SamplingOptions& options : ways_to_sample())
      EXPECT_TRUE(at::equal(drawn(more, 2, options), draw_tokens(more.cpu(), 2, options)))
          << rows << " " << options.temperature;
  }
}

TEST(GpuDrawToken, LogitsThatAreNotFiniteAreMarkedInTheHistory) {
  constexpr float kInfinity = std::numeric_limits<float>::infinity();
  for (const int64_t vocabulary : {50, 50000}) {
    const Tensor logits = random_logits(6, vocabulary, at::kFloat, false);
    logits[1][vocabulary - 1] = std::nanf("");
    logits[2][3] = kInfinity;
    logits[3].fill_(-kInfinity);
    logits[4].slice(0, 0, vocabulary / 2).fill_(-kInfinity);  // this one can be drawn from
    std::vector<SamplingOptions> ways = ways_to_sample();
    ways.push_back({});  // greedy
    for (const SamplingOptions& options : ways) {
      const Places places(logits, 1);
      model::gpu::draw_token(logits, places.tokens, places.history, places.position, options);
      const Tensor history = places.history[1].cpu();
      EXPECT_TRUE(history.slice(0, 1, 4).eq(-1).all().item<bool>()) << history;
      EXPECT_TRUE(places.tokens.slice(0, 1, 4).eq(0).all().item<bool>());
      EXPECT_TRUE(
          at::equal(history.slice(0, 0, 1), draw_tokens(logits.slice(0, 0, 1), 1, options)));
      EXPECT_GE(history[4].item<int64_t>(), vocabulary / 2);
      EXPECT_GE(history[5].item<int64_t>(), 0);
    }
  }
}

TEST(GpuDrawToken, ReplaysOfACapturedDrawEqualTheCpus) {
  const auto stream = c10::cuda::getStreamFromPool();
  for (const SamplingOptions& options : ways_to_sample()) {
    at::manual_seed(13);
    const Tensor logits = random_logits(3, 49152, at::kFloat, false), spare = logits.clone();
    const Places places(logits, 5), spare_places(spare, 5);
    c10::cuda::getCurrentCUDAStream().synchronize();
    const c10::cuda::CUDAStreamGuard guard(stream);
    const auto steps = [&](const Tensor& x, const Places& to) {
      for (int i = 0; i < 4;
           ++i) {  // as steps follow each other: logits that the last token decides
        to.position.add_(1);
        x.add_(to.tokens.unsqueeze(1).remainder(7).to(at::kFloat)).mul_(0.9F);
        model::gpu::draw_token(x, to.tokens, to.history, to.position, options);
      }
    };
    steps(spare, spare_places);
    at::cuda::CUDAGraph graph;
    graph.capture_begin();
    steps(logits, places);
    graph.capture_end();
    for (int replay = 0; replay < 3; ++replay) {
      Tensor on_gpu = logits.clone(), tokens = places.tokens.clone();
      graph.replay();
      for (int64_t i = 0; i < 4; ++i) {
        on_gpu.add_(tokens.unsqueeze(1).remainder(7).to(at::kFloat)).mul_(0.9F);
        const int64_t position = 6 + 4 * replay + i;
        tokens = draw_tokens(on_gpu, position, options).to(at::kCUDA);
        EXPECT_TRUE(at::equal(places.history[position % 4], tokens))
            << options.temperature << " at " << position;
      }
      EXPECT_TRUE(at::equal(places.tokens, tokens));
    }
  }
}

TEST(GpuDrawToken, BadInputIsRefusedByName) {
  const Tensor logits = at::zeros({2, 8}, at::kCUDA);
  const Places places(logits, 0);
  const DrawTokenInputs good{logits, places.tokens, places.history, places.position};
  const auto refusal = [&](const std::function<void(DrawTokenInputs&)>& spoil) {
    return message_of([&] {
      DrawTokenInputs in = good;
      spoil(in);
      draw_token(in);
    });
  };
  EXPECT_EQ(refusal([](auto&) {}), "nothing was thrown");
  EXPECT_THAT(refusal([](auto& in) { in.logits_NV = in.logits_NV.cpu(); }),
              HasSubstr("logits is on cpu, allowed: cuda"));
  EXPECT_THAT(refusal([](auto& in) { in.logits_NV = in.logits_NV.to(at::kDouble); }),
              HasSubstr("logits has dtype Double, allowed: bfloat16, float32"));
  EXPECT_THAT(refusal([](auto& in) { in.logits_NV = in.logits_NV.slice(1, 0, 0); }),
              HasSubstr("logits has shape [2, 0], allowed: [rows, vocabulary]"));
  EXPECT_THAT(refusal([](auto& in) {
                in.logits_NV = in.logits_NV.view({2, 2, 4});
              }),
              HasSubstr("logits has shape [2, 2, 4]"));
  EXPECT_THAT(refusal([](auto& in) { in.tokens_N = in.tokens_N.to(at::kInt); }),
              HasSubstr("tokens has dtype Int, allowed: Long"));
  EXPECT_THAT(refusal([](auto& in) { in.history_RN = in.history_RN.slice(1, 0, 1); }),
              HasSubstr("history has shape [4, 1], allowed: [4, 2]"));
  EXPECT_THAT(refusal([](auto& in) { in.history_RN = in.tokens_N; }),
              HasSubstr("history has shape [2], allowed: [steps, rows], not empty"));
  EXPECT_THAT(refusal([](auto& in) { in.position_1 = in.tokens_N; }),
              HasSubstr("position has shape [2], allowed: [1]"));
  EXPECT_THAT(refusal([](auto& in) { in.temperature = -1.0; }),
              HasSubstr("temperature is -1, allowed: 0 (greedy) or more"));
  EXPECT_THAT(refusal([](auto& in) { in.temperature = std::nan(""); }),
              HasSubstr("temperature is nan"));
  EXPECT_THAT(refusal([](auto& in) { in.top_k = -2; }),
              HasSubstr("top_k is -2, allowed: 0 (all) or more"));
  EXPECT_THAT(refusal([](auto& in) { in.top_p = 0.0; }),
              HasSubstr("top_p is 0, allowed: above 0, up to 1"));
  EXPECT_THAT(refusal([](auto& in) { in.top_p = 1.01; }),
              HasSubstr("top_p is 1.01, allowed: above 0, up to 1"));
}

}  // namespace
}  // namespace t2r::ops
