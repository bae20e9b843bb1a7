// Norms with the addition in front, against float64 and autograd on the same device.
#include <ATen/cuda/CUDAGraph.h>
#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <torch/csrc/autograd/autograd.h>
#include <torch/types.h>

#include "model/kernels/cuda/pointwise/norm.h"
#include "model/ops/norm_op.h"
#include "tests/gpu_support.h"
#include "tests/gpu_training_support.h"

namespace t2r::ops {
namespace {

using test::message_of;

struct NormCase {
  int64_t rows = 37, width = 768;
  bool layer_norm = true, delta = true, float_weight = false;
  bool use_sum = true, use_y = true;
  int64_t offset = 0;  // elements from an aligned address

  friend std::ostream& operator<<(std::ostream& out, const NormCase& c) {
    return out << "[" << c.rows << ", " << c.width << "]" << (c.layer_norm ? " layer" : " rms")
               << (c.delta ? " delta" : "") << (c.float_weight ? " float weight" : "")
               << (c.use_sum ? " sum" : "") << (c.use_y ? " y" : "") << " +" << c.offset;
  }
};

struct NormData {
  Tensor x, delta, weight, bias, grad_sum, grad_y;
};

NormData make_norm(const NormCase& c, at::ScalarType type) {
  at::manual_seed(3);
  const auto rows = [&] {
    return random({c.rows * c.width + c.offset}, type).slice(0, c.offset).view({c.rows, c.width});
  };
  const at::ScalarType weight_type = c.float_weight ? at::kFloat : type;
  NormData data{rows() + 1,
                c.delta ? rows() : Tensor(),
                random({c.width}, weight_type) + 1,
                c.layer_norm ? random({c.width}, weight_type) : Tensor(),
                c.use_sum ? rows() : Tensor(),
                c.use_y ? rows() : Tensor()};
  if (c.offset > 0) data.x = rows();
  return data;
}

Tensors run_norm(const NormData& data, bool two_outputs) {
  const bool has_delta = data.delta.defined(), has_bias = data.bias.defined();
  Tensors inputs{data.x.detach().requires_grad_()};
  if (has_delta) inputs.push_back(data.delta.detach().requires_grad_());
  inputs.push_back(leaf(data.weight));
  if (has_bias) inputs.push_back(leaf(data.bias));
  const std::optional<Tensor> delta = has_delta ? std::optional(inputs[1]) : std::nullopt,
                              bias = has_bias ? std::optional(inputs.back()) : std::nullopt;
  const Tensor weight = inputs[has_delta ? 2 : 1];
  if (!two_outputs)
    return values_and_gradients({ops::norm(inputs[0], weight, bias, 1e-5)}, inputs, {data.grad_y});
  const auto [sum, y] = add_norm(inputs[0], delta, weight, bias, 1e-5);
  EXPECT_TRUE(has_delta || sum.const_data_ptr() == data.x.const_data_ptr());
  return values_and_gradients({sum, y}, inputs, {data.grad_sum, data.grad_y});
}

/// In float64, but for the rounding of sum to `type`, which is part of the contract.
Tensors norm_oracle(const NormData& data, at::ScalarType type) {
  Tensors inputs{exact_leaf(data.x)};
  if (data.delta.defined()) inputs.push_back(exact_leaf(data.delta));
  inputs.push_back(exact_leaf(data.weight));
  if (data.bias.defined()) inputs.push_back(exact_leaf(data.bias));
  Tensor sum = data.delta.defined() ? inputs[0] + inputs[1] : inputs[0] + 0;
  sum = sum + (sum.detach().to(at::kFloat).to(type).to(at::kDouble) - sum.detach());
  const Tensor weight = inputs[data.delta.defined() ? 2 : 1];
  const Tensor centred = data.bias.defined() ? sum - sum.mean(-1, true) : sum;
  Tensor y = centred / (centred.square().mean(-1, true) + 1e-5).sqrt() * weight;
  if (data.bias.defined()) y = y + inputs.back();
  return values_and_gradients({sum, y}, inputs, {data.grad_sum, data.grad_y});
}

void expect_exact_norm(const NormCase& c) {
  for (const auto type : {at::kBFloat16, at::kFloat}) {
    SCOPED_TRACE(testing::Message() << c << " " << type);
    const NormData data = make_norm(c, type);
    const int64_t bytes =
        kernels::cuda::norm_backward_bytes(static_cast<int>(c.width), c.layer_norm);
    if (test::is_refused_for_memory(bytes, [&] { run_norm(data, true); })) continue;
    const Tensors actual = run_norm(data, true);
    EXPECT_EQ(actual[0].scalar_type(), type);
    EXPECT_EQ(actual[1].scalar_type(), type);
    expect_close(actual, norm_oracle(data, type), bar_of(type));
  }
}

TEST(GpuAddNorm, AgreesWithFloat64) {
  for (const bool layer_norm : {true, false}) {
    for (const bool delta : {true, false})
      expect_exact_norm({.layer_norm = layer_norm, .delta = delta});
    expect_exact_norm({.layer_norm = layer_norm, .float_weight = true});
  }
}

TEST(GpuAddNorm, Widths) {  // every kernel: warps, blocks, and the one for any width
  for (const int64_t width : {1,
                              7,
                              8,
                              64,
                              100,
                              512,
                              520,
                              776,
                              1000,
                              1024,
                              1032,
                              2048,
                              4096,
                              4104,
                              5120,
                              8192,
                              8200,
                              16384}) {
    expect_exact_norm({.rows = 5, .width = width, .layer_norm = width % 3 != 0});
  }
  expect_exact_norm({.width = 767});
  expect_exact_norm({.width = 767, .layer_norm = false});
}

TEST(GpuAddNorm, NumbersOfRows) {
  for (const int64_t rows : {1, 2, 5, 131, 9001})
    expect_exact_norm({.rows = rows, .layer_norm = rows % 2 == 1});
}

TEST(GpuAddNorm, OneGradientMayBeAbsent) {
  for (const bool layer_norm : {true, false}) {
    for (const bool delta : {true, false}) {
      expect_exact_norm({.layer_norm = layer_norm, .delta = delta, .use_sum = false});
      expect_exact_norm({.layer_norm = layer_norm, .delta = delta, .use_y = false});
    }
  }
}

TEST(GpuAddNorm, UnalignedMemory) {
  expect_exact_norm({.offset = 1});
}

TEST(GpuAddNorm, NormAloneIsItsSecondOutput) {
  const NormData data = make_norm({.delta = false, .use_sum = false}, at::kBFloat16);
  const Tensors alone = run_norm(data, false), both = run_norm(data, true);
  expect_same_bits(alone, Tensors(both.begin() + 1, both.end()));
}

TEST(GpuAddNorm, ExpandedGradientAndNoRows) {
  NormData data = make_norm({}, at::kFloat);
  data.grad_y = data.grad_y.slice(0, 0, 1).expand({37, 768});
  expect_close(run_norm(data, true), norm_oracle(data, at::kFloat), kFloatBar);
  const Tensors none = run_norm(make_norm({.rows = 0}, at::kFloat), true);
  EXPECT_EQ(none[1].sizes(), at::IntArrayRef({0, 768}));
  EXPECT_EQ(none[4].abs().max().item<float>(), 0.0F);  // of weight
}

TEST(GpuAddNorm, Repeatable) {
  for (const int64_t width : {768, 767, 2048}) {
    for (const bool layer_norm : {true, false}) {
      const NormData data =
          make_norm({.rows = 3000, .width = width, .layer_norm = layer_norm}, at::kBFloat16);
      expect_repeatable([&] { return run_norm(data, true); });
    }
  }
}

TEST(GpuAddNorm, BadInputIsRefusedByName) {
  const NormData good = make_norm({}, at::kBFloat16);
  const auto refusal = [&](const std::function<void(NormData&)>& spoil, double eps = 1e-5) {
    return message_of([&] {
      NormData in = good;
      spoil(in);
      add_norm(in.x, in.delta, in.weight, in.bias, eps);
    });
  };
  EXPECT_THAT(refusal([](auto& in) { in.x = in.x.cpu(); }),
              HasSubstr("add_norm: x is on cpu, allowed: cuda"));
  EXPECT_THAT(refusal([](auto& in) { in.x = in.x.to(at::kHalf); }),
              HasSubstr("x has dtype Half, allowed: bfloat16, float32"));
  EXPECT_THAT(refusal([](auto& in) { in.delta = in.delta.slice(0, 1); }),
              HasSubstr("delta has shape [36, 768], allowed: [37, 768]"));
  EXPECT_THAT(refusal([](auto& in) { in.weight = in.weight.to(at::kDouble); }),
              HasSubstr("weight has dtype Double, allowed: BFloat16, Float"));
  EXPECT_THAT(refusal([](auto& in) { in.bias = in.bias.to(at::kFloat); }),
              HasSubstr("bias has dtype Float, allowed: BFloat16"));
  EXPECT_THAT(refusal([](auto& in) { in.weight = in.weight.slice(0, 1); }),
              HasSubstr("weight has shape [767], allowed: [768]"));
  EXPECT_THAT(refusal([](auto&) {}, -1.0), HasSubstr("eps is -1, allowed: not negative"));
  EXPECT_THAT(refusal([](auto& in) {
                in.x = at::empty({1, 16385}, in.x.options());
              }),
              HasSubstr("x has width 16385, allowed: 1 to 16384"));
}

}  // namespace
}  // namespace t2r::ops
