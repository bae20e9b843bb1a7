// SwiGLU and rotary positions against float64 and autograd on the same device.
#include <ATen/cuda/CUDAGraph.h>
#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <torch/csrc/autograd/autograd.h>
#include <torch/types.h>

#include "model/ops/pointwise_op.h"
#include "tests/gpu_support.h"
#include "tests/gpu_training_support.h"

namespace t2r::ops {
namespace {

using test::message_of;

/// One input, one output.
void expect_exact_map(const Tensor& x,
                      const std::function<Tensor(const Tensor&)>& op,
                      const std::function<Tensor(const Tensor&)>& oracle) {
  const Tensor input = x.detach().requires_grad_(), exact_input = exact_leaf(x);
  const Tensor y = op(input), exact_y = oracle(exact_input);
  const Tensor grad_y = random(exact_y.sizes(), x.scalar_type());
  EXPECT_EQ(y.scalar_type(), x.scalar_type());
  expect_close(values_and_gradients({y}, {input}, {grad_y}),
               values_and_gradients({exact_y}, {exact_input}, {grad_y}),
               bar_of(x.scalar_type()));
}

Tensor swiglu_oracle(const Tensor& gate_up) {
  const auto parts = gate_up.chunk(2, -1);
  return at::silu(parts[0]) * parts[1];
}

TEST(GpuSwiglu, AgreesWithFloat64) {
  for (const auto type : {at::kBFloat16, at::kFloat}) {
    for (const int64_t width : {1, 3, 8, 12, 100, 768, 3072, 3073}) {
      for (const int64_t rows : {1, 7, 200}) {
        SCOPED_TRACE(testing::Message() << type << " [" << rows << ", " << width << "]");
        expect_exact_map(random({rows, 2 * width}, type) * 3, ops::swiglu, swiglu_oracle);
      }
    }
    expect_exact_map(random({2, 3, 64}, type), ops::swiglu, swiglu_oracle);
    expect_exact_map(
        random({2 * 3 * 64 + 1}, type).slice(0, 1).view({6, 64}), ops::swiglu, swiglu_oracle);
    expect_exact_map(random({64, 6}, type).t(), ops::swiglu, swiglu_oracle);
  }
}

TEST(GpuSwiglu, LargeGatesGiveNeitherNanNorInfinity) {
  const Tensor gate_up = at::tensor({-1e4, -100.0, -88.0, 88.0, 100.0, 1e4},
                                    at::TensorOptions(at::kCUDA).dtype(at::kFloat));
  const Tensor x = at::stack({gate_up, at::ones_like(gate_up)}, 1);
  expect_exact_map(x, ops::swiglu, swiglu_oracle);
}

struct Rotation {
  Tensor cosine, sine;
};

Rotation make_rotation(int64_t length, int64_t half) {
  const Tensor angle = random({length, half}, at::kFloat) * 3;
  return {angle.cos(), angle.sin()};
}

Tensor rotate_oracle(const Tensor& x, int64_t num_heads, const Rotation& r) {
  const Tensor turned = x.slice(2, 0, num_heads);
  const auto parts = turned.chunk(2, -1);
  const Tensor cosine = r.cosine.to(at::kDouble).unsqueeze(1),
               sine = r.sine.to(at::kDouble).unsqueeze(1);
  return at::cat(
      {at::cat({parts[0] * cosine - parts[1] * sine, parts[1] * cosine + parts[0] * sine}, -1),
       x.slice(2, num_heads)},
      2);
}

TEST(GpuRotateHeads, AgreesWithFloat64) {
  for (const auto type : {at::kBFloat16, at::kFloat}) {
    for (const int64_t half : {1, 3, 8, 20, 32, 64}) {
      for (const int64_t num_heads : {0, 2, 5}) {
        SCOPED_TRACE(testing::Message() << type << " d " << 2 * half << " heads " << num_heads);
        const Rotation r = make_rotation(11, half);
        expect_exact_map(
            random({3, 11, 5, 2 * half}, type),
            [&](const Tensor& x) { return ops::rotate_heads(x, num_heads, r.cosine, r.sine); },
            [&](const Tensor& x) { return rotate_oracle(x, num_heads, r); });
      }
    }
  }
}

TEST(GpuPointwise, Repeatable) {
  const Tensor gate_up = random({500, 2 * 768}, at::kBFloat16),
               x = random({4, 64, 12, 64}, at::kBFloat16), dy = random({500, 768}, at::kBFloat16);
  const Rotation r = make_rotation(64, 32);
  expect_repeatable([&] {
    const Tensor a = leaf(gate_up), b = leaf(x);
    return values_and_gradients(
        {ops::swiglu(a), ops::rotate_heads(b, 8, r.cosine, r.sine)}, {a, b}, {dy, x});
  });
}

TEST(GpuPointwise, BadInputIsRefusedByName) {
  const Tensor x = random({2, 6, 4, 8}, at::kBFloat16);
  const Rotation r = make_rotation(6, 4);
  EXPECT_THAT(message_of([&] { ops::swiglu(x.cpu()); }),
              HasSubstr("swiglu: gate_up is on cpu, allowed: cuda"));
  EXPECT_THAT(message_of([&] { ops::swiglu(x.slice(3, 0, 7)); }),
              HasSubstr("gate_up has width 7, allowed: even"));
  EXPECT_THAT(message_of([&] { ops::swiglu(x.to(at::kDouble)); }),
              HasSubstr("swiglu: gate_up has dtype Double, allowed: bfloat16, float32"));
  EXPECT_THAT(message_of([&] { ops::rotate_heads(x, 5, r.cosine, r.sine); }),
              HasSubstr("num_heads is 5, allowed: 0 to 4"));
  EXPECT_THAT(message_of([&] { ops::rotate_heads(x, 2, r.cosine.slice(0, 1), r.sine); }),
              HasSubstr("cosine has shape [5, 4], allowed: [6, 4]"));
  EXPECT_THAT(message_of([&] { ops::rotate_heads(x, 2, r.cosine, r.sine.to(at::kBFloat16)); }),
              HasSubstr("sine has dtype BFloat16, allowed: Float"));
}

}  // namespace
}  // namespace t2r::ops
