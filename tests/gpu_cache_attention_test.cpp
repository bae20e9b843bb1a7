// Softmax attention over a key/value cache, one token at a time, against float64.
#include <ATen/cuda/CUDAGraph.h>
#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <torch/types.h>

#include "model/ops/cache_attention_op.h"
#include "tests/gpu_support.h"

namespace t2r::ops {
namespace {

using test::message_of;
using test::relative_error;
using test::spread;
using testing::HasSubstr;

struct Case {
  int64_t batch = 2, query_heads = 3, key_heads = 3, head_size = 64, length = 0,
          capacity = 0;  // capacity 0: what the token needs
  double k_size = 1.0, v_mean = 0.0;

  friend std::ostream& operator<<(std::ostream& out, const Case& c) {
    return out << "B" << c.batch << " H" << c.query_heads << "/" << c.key_heads << " d"
               << c.head_size << " length " << c.length;
  }
};

CacheAttentionInputs make_inputs(const Case& c, at::ScalarType type) {
  at::manual_seed(11);
  const int64_t capacity = c.capacity > 0 ? c.capacity : c.length + 1;
  const auto options = at::TensorOptions(at::kCUDA).dtype(at::kFloat);
  const auto random = [&](at::IntArrayRef sizes, double size, double mean) {
    return at::randn(sizes, options).mul(size).add(mean).to(type);
  };
  CacheAttentionInputs in;
  in.q_BHd = random({c.batch, c.query_heads, c.head_size}, 1.0, 0.0);
  in.k_BHd = random({c.batch, c.key_heads, c.head_size}, c.k_size, 0.0);
  in.v_BHd = random({c.batch, c.key_heads, c.head_size}, 1.0, c.v_mean);
  in.keys_BHCd = random({c.batch, c.key_heads, capacity, c.head_size}, c.k_size, 0.0);
  in.values_BHCd = random({c.batch, c.key_heads, capacity, c.head_size}, 1.0, c.v_mean);
  // What no token has written must not be read.
  in.keys_BHCd.narrow(2, c.length, capacity - c.length).fill_(std::nan(""));
  in.values_BHCd.narrow(2, c.length, capacity - c.length).fill_(std::nan(""));
  in.length_1 = at::full({1}, c.length, options.dtype(at::kLong));
  in.tickets = at::zeros({c.batch * c.query_heads}, options.dtype(at::kInt));
  in.scale = 1.0 / std::sqrt(double(c.head_size));
  return in;
}

/// o in float64, from what the cache holds behind the step.
Tensor oracle(const CacheAttentionInputs& in, int64_t length) {
  const int64_t heads = in.q_BHd.size(1);
  const auto rows = [&](const Tensor& cache) {
    return spread(cache.narrow(2, 0, length + 1).to(at::kDouble), heads, 1);
  };
  const Tensor scores =
      at::einsum("bhd,bhtd->bht", {in.q_BHd.to(at::kDouble), rows(in.keys_BHCd)}) * in.scale;
  return at::einsum("bht,bhtd->bhd", {scores.softmax(-1), rows(in.values_BHCd)});
}

void expect_exact(const Case& c) {
  // In bfloat16 the output is rounded, nothing else is.
  for (const auto& [type, bar] : {std::pair{at::kBFloat16, 4e-3}, std::pair{at::kFloat, 1e-5}}) {
    SCOPED_TRACE(testing::Message() << c << " " << type);
    const CacheAttentionInputs in = make_inputs(c, type);
    const Tensor keys_before = in.keys_BHCd.narrow(2, 0, c.length).clone();
    for (int repeat = 0; repeat < 2; ++repeat) {  // the tickets are left as they were found
      const Tensor o = cache_attention_step(in);
      ASSERT_EQ(o.sizes(), in.q_BHd.sizes());
      EXPECT_LE(relative_error(o, oracle(in, c.length)), bar);
    }
    EXPECT_TRUE(at::equal(in.keys_BHCd.select(2, c.length), in.k_BHd) &&
                at::equal(in.values_BHCd.select(2, c.length), in.v_BHd));
    EXPECT_TRUE(at::equal(in.keys_BHCd.narrow(2, 0, c.length), keys_before));
    EXPECT_EQ(in.tickets.abs().max().item<int>(), 0);
  }
}

TEST(GpuCacheAttention, Lengths) {
  for (const int64_t length : {0, 1, 2, 63, 64, 127, 128, 129, 255, 256, 1000, 4097, 22528, 22529})
    expect_exact({.length = length});
  expect_exact({.batch = 1, .query_heads = 2, .key_heads = 1, .head_size = 32, .length = 70001});
  expect_exact({.length = 300, .capacity = 1000});
}

TEST(GpuCacheAttention, HeadSizes) {
  for (const int64_t head_size : {8, 16, 24, 32, 40, 64, 72, 80, 96, 128}) {
    for (const int64_t length : {5, 700})
      expect_exact({.head_size = head_size, .length = length, .v_mean = 1.0});
  }
}

TEST(GpuCacheAttention, GroupedQueries) {
  for (const int64_t group : {1, 2, 3, 4, 5, 6, 7, 8, 9, 16, 64}) {
    for (const int64_t head_size : {32, 128}) {
      expect_exact(
          {.query_heads = 2 * group, .key_heads = 2, .head_size = head_size, .length = 333});
    }
  }
}

TEST(GpuCacheAttention, AnyNumberOfSequences) {  // one block of threads a cache, and many
  for (const int64_t batch : {1, 5, 33, 64, 200})
    expect_exact({.batch = batch, .query_heads = 6, .key_heads = 2, .length = 500});
}

TEST(GpuCacheAttention, ScoresThatAreFarApart) {
  expect_exact({.length = 900, .k_size = 30.0});
}

TEST(GpuCacheAttention, SlicesOfAFusedProjection) {
  for (const int64_t offset : {0, 1}) {  // 1: no alignment is asked of the token's vectors
    CacheAttentionInputs in = make_inputs({.length = 40}, at::kBFloat16);
    const auto parts = at::randn({2, 9 * 64 + offset}, in.q_BHd.options())
                           .slice(1, offset)
                           .unflatten(1, {9, 64})
                           .split(3, 1);
    in.q_BHd = parts[0], in.k_BHd = parts[1], in.v_BHd = parts[2];
    const Tensor o = cache_attention_step(in);
    EXPECT_LE(relative_error(o, oracle(in, 40)), 4e-3);
  }
}

TEST(GpuCacheAttention, CapacityMakesNoDifference) {
  const Case c{.length = 777};
  Case roomy = c;
  roomy.capacity = 5000;
  EXPECT_TRUE(at::equal(cache_attention_step(make_inputs(c, at::kFloat)).isnan(),
                        at::zeros({2, 3, 64}, at::kCUDA).to(at::kBool)));
  const CacheAttentionInputs small = make_inputs(c, at::kFloat);
  CacheAttentionInputs large = make_inputs(roomy, at::kFloat);
  large.q_BHd = small.q_BHd, large.k_BHd = small.k_BHd, large.v_BHd = small.v_BHd;
  large.keys_BHCd.narrow(2, 0, 777).copy_(small.keys_BHCd.narrow(2, 0, 777));
  large.values_BHCd.narrow(2, 0, 777).copy_(small.values_BHCd.narrow(2, 0, 777));
  EXPECT_TRUE(at::equal(cache_attention_step(small), cache_attention_step(large)));
}

TEST(GpuCacheAttention, AReplayedGraphServesEveryLength) {
  for (const int64_t batch : {1, 40}) {
    const Case c{.batch = batch, .query_heads = 6, .key_heads = 2, .length = 250, .capacity = 2000};
    const auto stream = c10::cuda::getStreamFromPool();
    const CacheAttentionInputs eager = make_inputs(c, at::kBFloat16),
                               replayed = make_inputs(c, at::kBFloat16);
    c10::cuda::getCurrentCUDAStream().synchronize();
    const c10::cuda::CUDAStreamGuard guard(stream);
    const auto advance = [](const CacheAttentionInputs& in) {
      const Tensor o = cache_attention_step(in);
      in.length_1.add_(1);
      in.k_BHd.mul_(-1.0F), in.v_BHd.add_(0.25F);
      return o;
    };
    advance(make_inputs(c, at::kBFloat16));  // libraries set themselves up
    at::cuda::CUDAGraph graph;
    graph.capture_begin();
    const Tensor o = advance(replayed);
    graph.capture_end();
    for (int step = 0; step < 20; ++step) {
      const Tensor wanted = advance(eager);
      graph.replay();
      ASSERT_TRUE(at::equal(o, wanted)) << "step " << step;
    }
    EXPECT_EQ(replayed.length_1.item<int64_t>(), 270);
    EXPECT_TRUE(at::equal(replayed.keys_BHCd.narrow(2, 0, 270), eager.keys_BHCd.narrow(2, 0, 270)));
  }
}

TEST(GpuCacheAttention, ALengthPastTheCapacityGivesNanAndChangesNothing) {
  for (const int64_t length : {-1, 64, 65}) {
    const CacheAttentionInputs in = make_inputs({.length = 63}, at::kFloat);
    in.keys_BHCd.fill_(1.0F), in.values_BHCd.fill_(1.0F);
    in.length_1.fill_(length);
    EXPECT_TRUE(cache_attention_step(in).isnan().all().item<bool>());
    EXPECT_TRUE(in.keys_BHCd.eq(1.0F).all().item<bool>() &&
                in.values_BHCd.eq(1.0F).all().item<bool>());
  }
}

TEST(GpuCacheAttention, BadInputIsRefusedByName) {
  const CacheAttentionInputs good = make_inputs({.length = 9}, at::kBFloat16);
  const auto refusal = [&](const std::function<void(CacheAttentionInputs&)>& spoil) {
    return message_of([&] {
      CacheAttentionInputs in = good;
      spoil(in);
      cache_attention_step(in);
    });
  };
  EXPECT_THAT(refusal([](auto& in) { in.q_BHd = in.q_BHd.cpu(); }),
              HasSubstr("q is on cpu, allowed: cuda"));
  EXPECT_THAT(refusal([](auto& in) { in.q_BHd = in.q_BHd.to(at::kDouble); }),
              HasSubstr("q has dtype Double, allowed: bfloat16, float32"));
  EXPECT_THAT(refusal([](auto& in) { in.v_BHd = in.v_BHd.to(at::kFloat); }),
              HasSubstr("v has dtype Float, q has BFloat16"));
  EXPECT_THAT(refusal([](auto& in) { in.q_BHd = in.q_BHd.slice(2, 0, 20); }),
              HasSubstr("q has head size 20, allowed: multiples of 8 up to 128"));
  EXPECT_THAT(refusal([](auto& in) { in.k_BHd = in.k_BHd.slice(1, 0, 2); }),
              HasSubstr("heads of q, k are 3, 2, allowed: q's a multiple"));
  EXPECT_THAT(refusal([](auto& in) { in.values_BHCd = in.values_BHCd.slice(2, 0, 8); }),
              HasSubstr("values has shape [2, 3, 8, 64], allowed: [2, 3, 10, 64]"));
  EXPECT_THAT(refusal([](auto& in) {
                in.keys_BHCd = in.keys_BHCd.transpose(0, 1).contiguous().transpose(0, 1);
              }),
              HasSubstr("keys has strides"));
  EXPECT_THAT(refusal([](auto& in) { in.length_1 = in.length_1.cpu(); }),
              HasSubstr("length is on cpu"));
  EXPECT_THAT(refusal([](auto& in) { in.length_1 = in.length_1.to(at::kInt); }),
              HasSubstr("length has dtype Int, allowed: Long"));
  EXPECT_THAT(refusal([](auto& in) { in.tickets = in.tickets.slice(0, 0, 5); }),
              HasSubstr("tickets has 5 elements, allowed: at least 6"));
  EXPECT_THAT(refusal([](auto& in) { in.scale = 0.0; }),
              HasSubstr("scale is 0, allowed: positive"));
}

}  // namespace
}  // namespace t2r::ops
