// The projections of a step of generation against float64.
#include <ATen/cuda/CUDAGraph.h>
#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <torch/types.h>

#include "base/error.h"
#include "model/ops/step_linear_op.h"
#include "tests/gpu_support.h"

namespace t2r::ops {
namespace {

using Activation = StepLinearInputs::Activation;
using test::message_of;
using test::relative_error;
using testing::HasSubstr;

enum class Norm { kNone, kRms, kLayer };

struct Case {
  int64_t rows = 1, inputs = 576, outputs = 960;
  Norm norm = Norm::kNone;
  bool bias = false, residual = false;
  Activation activation = Activation::kNone;
  int64_t half = 0, rotated = 0, position = 37;
  bool float_output = false;

  friend std::ostream& operator<<(std::ostream& out, const Case& c) {
    return out << c.rows << " x " << c.inputs << " -> " << c.outputs << " norm " << int(c.norm)
               << " activation " << int(c.activation) << " half " << c.half;
  }
};

StepLinearInputs make_inputs(const Case& c) {
  at::manual_seed(5);
  const auto options = at::TensorOptions(at::kCUDA).dtype(at::kFloat);
  const auto random = [&](at::IntArrayRef sizes, double size, double mean) {
    return at::randn(sizes, options).mul(size).add(mean).to(at::kBFloat16);
  };
  const int64_t height = c.activation == Activation::kSwiglu ? 2 * c.outputs : c.outputs;
  StepLinearInputs in;
  in.x_NI = random({c.rows, c.inputs}, 2.0, 0.5);
  in.weight_OI = random({height, c.inputs}, 1.0 / std::sqrt(double(c.inputs)), 0.0);
  if (c.bias) in.bias = random({height}, 0.5, 0.0);
  if (c.norm != Norm::kNone) in.norm_weight = random({c.inputs}, 0.3, 1.0);
  if (c.norm == Norm::kLayer) in.norm_bias = random({c.inputs}, 0.3, 0.0);
  in.eps = 1e-5;
  if (c.residual) in.residual_NO = random({c.rows, c.outputs}, 1.0, 0.0);
  in.activation = c.activation;
  if (c.half > 0) {
    const Tensor angles = at::rand({64, c.half}, options).mul(6.0);
    in.cosine_Ph = angles.cos(), in.sine_Ph = angles.sin();
    in.position_1 = at::full({1}, c.position, options.dtype(at::kLong));
    in.rotated = c.rotated;
  }
  in.float_output = c.float_output;
  return in;
}

Tensor oracle(const StepLinearInputs& in, const Case& c) {
  const auto exact = [](const Tensor& tensor) { return tensor.to(at::kDouble); };
  Tensor x = exact(in.x_NI);
  if (c.norm == Norm::kLayer)
    x = at::layer_norm(x, {c.inputs}, exact(in.norm_weight), exact(in.norm_bias), in.eps);
  if (c.norm == Norm::kRms)
    x = x * (x.square().mean(-1, true) + in.eps).rsqrt() * exact(in.norm_weight);
  Tensor y = at::matmul(x, exact(in.weight_OI).t());
  if (c.bias) y = y + exact(in.bias);
  if (c.activation == Activation::kGelu) y = at::gelu(y, "tanh");
  if (c.activation == Activation::kSwiglu)
    y = at::silu(y.slice(1, 0, c.outputs)) * y.slice(1, c.outputs);
  if (c.half > 0) {
    const Tensor heads = y.unflatten(1, {-1, 2, c.half});
    const Tensor cosine = exact((in.cosine_Ph)[c.position]), sine = exact((in.sine_Ph)[c.position]);
    const Tensor low = heads.select(2, 0), high = heads.select(2, 1);
    const Tensor turned =
        at::stack({low * cosine - high * sine, high * cosine + low * sine}, 2).flatten(1);
    y = at::cat({turned.slice(1, 0, c.rotated), y.slice(1, c.rotated)}, 1);
  }
  return c.residual ? y + exact(in.residual_NO) : y;
}

int64_t most_rows(const Case& c) {
  const int norms = c.norm == Norm::kLayer ? 2 : c.norm == Norm::kRms ? 1 : 0;
  return most_step_rows(c.inputs, norms, c.activation == Activation::kSwiglu || c.half > 0);
}

void expect_exact(const Case& c) {
  SCOPED_TRACE(testing::Message() << c);
  const StepLinearInputs in = make_inputs(c);
  if (const int64_t most = most_rows(c); c.rows > most) {  // a GPU with little shared memory
    EXPECT_THAT(
        message_of([&] { step_linear(in); }),
        HasSubstr(most == 0
                      ? concat("x has ", c.inputs, " columns, allowed: fewer")
                      : concat("x has ", c.rows, " rows, allowed: 1 to ", most, " of ", c.inputs)));
    return;
  }
  const Tensor y = step_linear(in);
  EXPECT_EQ(y.scalar_type(), c.float_output ? at::kFloat : at::kBFloat16);
  ASSERT_EQ(y.sizes(), at::IntArrayRef({c.rows, c.outputs}));
  // The norm and the output are rounded to bfloat16; without either, the sums are float32's.
  const double bar = c.float_output && c.norm == Norm::kNone ? 1e-5 : 4e-3;
  EXPECT_LE(relative_error(y, oracle(in, c)), bar);
}

TEST(GpuStepLinear, RowsAndSizes) {
  for (const int64_t rows : {1, 2, 7, 8, 9, 16}) {
    for (const auto& [inputs, outputs] : {std::pair<int64_t, int64_t>{8, 1},
                                          {24, 7},
                                          {64, 8},
                                          {576, 576},
                                          {1536, 576},
                                          {1544, 100},
                                          {3072, 50}}) {
      expect_exact({.rows = rows, .inputs = inputs, .outputs = outputs});
      expect_exact({.rows = rows, .inputs = inputs, .outputs = outputs, .float_output = true});
    }
  }
  expect_exact({.rows = 2, .inputs = 16384, .outputs = 40, .norm = Norm::kLayer});
  expect_exact({.rows = 4, .inputs = 8192, .outputs = 100, .norm = Norm::kRms});
  expect_exact(
      {.rows = 16, .inputs = 576, .outputs = 49152, .norm = Norm::kRms, .float_output = true});
}

TEST(GpuStepLinear, NormsBiasesAndResiduals) {
  for (const Norm norm : {Norm::kNone, Norm::kRms, Norm::kLayer}) {
    for (const bool bias : {false, true}) {
      for (const bool residual : {false, true}) {
        expect_exact({.rows = 3, .norm = norm, .bias = bias, .residual = residual});
        expect_exact({.rows = 16,
                      .norm = norm,
                      .bias = bias,
                      .residual = residual,
                      .activation = Activation::kSwiglu});
        expect_exact({.rows = 10,
                      .norm = norm,
                      .bias = bias,
                      .residual = residual,
                      .activation = Activation::kGelu});
      }
    }
  }
}

TEST(GpuStepLinear, Rotation) {
  for (const int64_t half : {16, 32, 64, 5}) {
    for (const int64_t position : {0, 63}) {
      expect_exact({.rows = 2,
                    .inputs = 96,
                    .outputs = 10 * half,
                    .norm = Norm::kRms,
                    .half = half,
                    .rotated = 6 * half,
                    .position = position});
    }
  }
  expect_exact({.rows = 16, .norm = Norm::kRms, .bias = true, .half = 32, .rotated = 12 * 64});
  const StepLinearInputs outside = make_inputs({.half = 32, .rotated = 64, .position = 64});
  const Tensor y = step_linear(outside);
  EXPECT_TRUE(y.slice(1, 0, 64).isnan().all().item<bool>() &&
              !y.slice(1, 64).isnan().any().item<bool>());
}

TEST(GpuStepLinear, ReplaysOfAChainEqualLaunches) {
  // Kernels that begin before those in front of them have ended: a chain through the same buffers
  // shows a missing wait.
  const StepLinearInputs first =
      make_inputs({.rows = 2, .inputs = 576, .outputs = 576, .norm = Norm::kRms, .residual = true});
  const auto stream = c10::cuda::getStreamFromPool();
  const Tensor state = first.x_NI.clone();
  c10::cuda::getCurrentCUDAStream().synchronize();
  const c10::cuda::CUDAStreamGuard guard(stream);
  const auto chain = [&](bool waits) {
    Tensor x = state;
    for (int i = 0; i < 40; ++i) {
      StepLinearInputs in = first;
      in.x_NI = x, in.residual_NO = x;
      x = step_linear(in);
      if (waits) stream.synchronize();
    }
    return x;
  };
  const Tensor wanted = chain(true);
  at::cuda::CUDAGraph graph;
  graph.capture_begin();
  const Tensor out = chain(false);
  graph.capture_end();
  for (int i = 0; i < 20; ++i) {
    out.fill_(std::nan(""));
    graph.replay();
    ASSERT_TRUE(at::equal(out, wanted)) << i;
  }
  EXPECT_FALSE(wanted.isnan().any().item<bool>());
}

TEST(GpuStepLinear, MostRowsGoAndOneMoreDoesNot) {
  for (const int64_t inputs : {8, 576, 3072, 4096, 8192, 16384}) {
    for (const Norm norm : {Norm::kNone, Norm::kLayer}) {
      Case c{.inputs = inputs, .outputs = 64, .norm = norm};
      c.rows = most_rows(c);
      EXPECT_LE(c.rows, 16);
      EXPECT_LE(c.rows * inputs, 49152);
      if (inputs <= 2048) {
        EXPECT_EQ(c.rows, 16) << inputs;
      }
      if (norm == Norm::kNone) {
        EXPECT_GE(c.rows, 2) << inputs;  // what leaves a block of Llama's size, on every GPU
      }
      if (c.rows > 0) expect_exact(c);
      ++c.rows;
      expect_exact(c);
    }
  }
  EXPECT_EQ(most_step_rows(60, 0, false), 0);
  EXPECT_EQ(most_step_rows(16392, 0, false), 0);
}

TEST(GpuStepLinear, BadInputIsRefusedByName) {
  const Case c{
      .rows = 2, .inputs = 64, .outputs = 96, .norm = Norm::kRms, .half = 16, .rotated = 64};
  const StepLinearInputs good = make_inputs(c);
  const auto refusal = [&](const std::function<void(StepLinearInputs&)>& spoil) {
    return message_of([&] {
      StepLinearInputs in = good;
      spoil(in);
      step_linear(in);
    });
  };
  EXPECT_THAT(refusal([](auto& in) { in.x_NI = in.x_NI.to(at::kFloat); }),
              HasSubstr("x has dtype Float, allowed: bfloat16"));
  EXPECT_THAT(refusal([](auto& in) {
                in.x_NI = in.x_NI.repeat({9, 1});
              }),
              HasSubstr("x has 18 rows, allowed: 1 to 16"));
  EXPECT_THAT(refusal([](auto& in) { in.x_NI = in.x_NI.slice(1, 0, 60); }),
              HasSubstr("x has 60 columns, allowed: multiples of 8"));
  EXPECT_THAT(refusal([](auto& in) { in.weight_OI = in.weight_OI.t(); }),
              HasSubstr("weight has shape [64, 96], allowed: [64, 64]"));
  EXPECT_THAT(refusal([](auto& in) { in.weight_OI = in.weight_OI.t().contiguous().t(); }),
              HasSubstr("weight is not contiguous"));
  EXPECT_THAT(refusal([](auto& in) { in.bias = in.norm_weight; }),
              HasSubstr("bias has shape [64], allowed: [96]"));
  EXPECT_THAT(refusal([](auto& in) { in.position_1.reset(); }),
              HasSubstr("cosine, sine and position come together"));
  EXPECT_THAT(refusal([](auto& in) { in.rotated = 40; }), HasSubstr("rotated is 40 of 96 columns"));
  EXPECT_THAT(refusal([](auto& in) { in.activation = Activation::kSwiglu; }),
              HasSubstr("activation is set, allowed with cosine: none"));
  EXPECT_THAT(refusal([](auto& in) { in.float_output = true; }), HasSubstr("float_output is set"));
}

}  // namespace
}  // namespace t2r::ops
