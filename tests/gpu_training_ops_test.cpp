// The memory-bound operators of the training step against float64 and autograd on the same device.
#include <ATen/cuda/CUDAGraph.h>
#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <torch/csrc/autograd/autograd.h>
#include <torch/types.h>

#include "model/kernels/cuda/pointwise/norm.h"
#include "model/ops/embedding_op.h"
#include "model/ops/loss_op.h"
#include "model/ops/norm_op.h"
#include "model/ops/pointwise_op.h"
#include "tests/gpu_support.h"

namespace t2r::ops {
namespace {

using test::message_of;
using test::relative_error;
using testing::HasSubstr;
using Tensors = std::vector<Tensor>;

// One rounding of an output is 2^-9 in bfloat16; sums of rounded terms stay below two of them.
constexpr double kBf16Bar = 5e-3, kFloatBar = 2e-5;

double bar_of(at::ScalarType type) {
  return type == at::kBFloat16 ? kBf16Bar : kFloatBar;
}

Tensor random(at::IntArrayRef sizes, at::ScalarType type) {
  return at::randn(sizes, at::TensorOptions(at::kCUDA).dtype(at::kFloat)).to(type);
}

Tensor leaf(const Tensor& tensor) {
  return tensor.detach().clone().requires_grad_();
}
Tensor exact_leaf(const Tensor& tensor) {
  return tensor.detach().to(at::kDouble).requires_grad_();
}

/// The outputs, then the gradients of the inputs, given those of the outputs (undefined: that
/// output is not used).
Tensors values_and_gradients(const Tensors& outputs,
                             const Tensors& inputs,
                             const Tensors& output_gradients) {
  Tensors used, gradients, results = outputs;
  for (size_t i = 0; i < outputs.size(); ++i) {
    if (!output_gradients[i].defined()) continue;
    used.push_back(outputs[i]);
    gradients.push_back(output_gradients[i].to(outputs[i].scalar_type()));
  }
  for (const Tensor& gradient : torch::autograd::grad(used,
                                                      inputs,
                                                      gradients,
                                                      /*retain_graph=*/std::nullopt,
                                                      /*create_graph=*/false,
                                                      /*allow_unused=*/true)) {
    results.push_back(gradient);
  }
  return results;
}

/// A shape and a dtype, then values: what is not defined in one may be zero in the other.
void expect_close(const Tensors& actual, const Tensors& exact, double bar) {
  ASSERT_EQ(actual.size(), exact.size());
  for (size_t i = 0; i < actual.size(); ++i) {
    if (!exact[i].defined() || !actual[i].defined()) {
      const Tensor& other = exact[i].defined() ? exact[i] : actual[i];
      EXPECT_TRUE(!other.defined() || other.abs().max().item<double>() == 0.0) << "result " << i;
      continue;
    }
    ASSERT_EQ(actual[i].sizes(), exact[i].sizes()) << "result " << i;
    EXPECT_LE(relative_error(actual[i], exact[i]), bar) << "result " << i;
  }
}

void expect_same_bits(const Tensors& a, const Tensors& b) {
  ASSERT_EQ(a.size(), b.size());
  for (size_t i = 0; i < a.size(); ++i) EXPECT_TRUE(at::equal(a[i], b[i])) << "result " << i;
}

/// `body`, eagerly twice and in a CUDA graph: the same bits.
void expect_repeatable(const std::function<Tensors()>& body) {
  const auto stream = c10::cuda::getStreamFromPool();
  c10::cuda::getCurrentCUDAStream().synchronize();
  const c10::cuda::CUDAStreamGuard guard(stream);
  const Tensors eager = body();
  expect_same_bits(body(), eager);
  at::cuda::CUDAGraph graph;
  graph.capture_begin();
  const Tensors captured = body();
  graph.capture_end();
  for (const Tensor& result : captured) result.detach().fill_(7);
  graph.replay();
  stream.synchronize();
  expect_same_bits(captured, eager);
}

// --- the norm

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

// --- element by element

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

// --- the loss

struct LossCase {
  int64_t rows = 50, width = 64, vocabulary = 1000, chunk_rows = 0;
  double scale = 1.0;  // the incoming gradient
  bool left_out = true;

  friend std::ostream& operator<<(std::ostream& out, const LossCase& c) {
    return out << "N" << c.rows << " D" << c.width << " V" << c.vocabulary << " chunk "
               << c.chunk_rows << " scale " << c.scale;
  }
};

struct LossData {
  Tensor x, weight, targets;
};

LossData make_loss(const LossCase& c, at::ScalarType type) {
  at::manual_seed(5);
  LossData data{random({c.rows, c.width}, type),
                random({c.vocabulary, c.width}, type).div(std::sqrt(double(c.width)) / 2),
                at::randint(c.vocabulary, {c.rows}, at::TensorOptions(at::kCUDA).dtype(at::kLong))};
  if (c.left_out && c.rows > 3) data.targets.slice(0, 1, c.rows, 3).fill_(-100);
  data.targets.slice(0, 0, 1).fill_(c.vocabulary - 1);
  return data;
}

Tensor device_scalar(double value) {
  return at::full({}, value, at::TensorOptions(at::kCUDA).dtype(at::kDouble));
}

Tensors run_loss(const LossData& data, const LossCase& c) {
  const Tensor x = leaf(data.x), weight = leaf(data.weight);
  return values_and_gradients({linear_cross_entropy_sum(x, weight, data.targets, c.chunk_rows)},
                              {x, weight},
                              {device_scalar(c.scale)});
}

Tensor losses_oracle(const Tensor& x, const Tensor& weight, const Tensor& targets) {
  const Tensor log_softmax = at::log_softmax(at::mm(x, weight.t()), 1);
  const Tensor values = log_softmax.gather(1, targets.clamp_min(0).unsqueeze(1)).squeeze(1).neg();
  return at::where(targets >= 0, values, at::zeros_like(values));
}

void expect_exact_loss(const LossCase& c) {
  // Logits are rounded to bfloat16: up to 2^-9 of several nats, and as much of each probability.
  for (const auto& [type, bar] :
       {std::pair{at::kBFloat16, 1e-2}, std::pair{at::kFloat, kFloatBar}}) {
    SCOPED_TRACE(testing::Message() << c << " " << type);
    const LossData data = make_loss(c, type);
    const Tensor x = exact_leaf(data.x), weight = exact_leaf(data.weight),
                 losses = losses_oracle(x, weight, data.targets);
    const Tensors actual = run_loss(data, c);
    EXPECT_EQ(actual[0].scalar_type(), at::kDouble);
    EXPECT_EQ(actual[2].scalar_type(), type);
    expect_close(
        actual, values_and_gradients({losses.sum()}, {x, weight}, {device_scalar(c.scale)}), bar);
    const Tensor values =
        linear_cross_entropy_values(data.x, data.weight, data.targets, c.chunk_rows);
    EXPECT_EQ(values.scalar_type(), at::kFloat);
    expect_close({values}, {losses}, bar);
    EXPECT_TRUE(at::equal(linear_cross_entropy_sum(data.x, data.weight, data.targets, c.chunk_rows),
                          actual[0]));
  }
}

TEST(GpuLinearCrossEntropy, AgreesWithFloat64) {
  expect_exact_loss({});
  expect_exact_loss({.scale = 1.0 / 12345.0});
  expect_exact_loss({.rows = 1});
  expect_exact_loss({.left_out = false});
}

TEST(GpuLinearCrossEntropy, Chunks) {
  for (const int64_t chunk_rows : {1, 7, 16, 49, 50, 1000})
    expect_exact_loss({.chunk_rows = chunk_rows});
}

TEST(GpuLinearCrossEntropy,
     Vocabularies) {  // in shared memory and beyond it, with rows that are not whole vectors
  for (const int64_t vocabulary : {1, 2, 7, 8, 9, 4097, 8193, 50257, 50304, 120001}) {
    expect_exact_loss({.rows = 9, .width = 24, .vocabulary = vocabulary, .chunk_rows = 4});
  }
}

TEST(GpuLinearCrossEntropy, OnlyWhatIsAskedFor) {
  const LossCase c;
  const LossData data = make_loss(c, at::kBFloat16);
  const Tensors both = run_loss(data, c);
  const Tensor x = leaf(data.x), weight = leaf(data.weight), one = device_scalar(1.0);
  expect_same_bits(
      values_and_gradients({linear_cross_entropy_sum(x, data.weight, data.targets)}, {x}, {one}),
      {both[0], both[1]});
  expect_same_bits(values_and_gradients(
                       {linear_cross_entropy_sum(data.x, weight, data.targets)}, {weight}, {one}),
                   {both[0], both[2]});
}

TEST(GpuLinearCrossEntropy, NoRowsAndNoTargets) {
  const LossCase none{.rows = 0, .left_out = false};
  LossData data = make_loss(none, at::kBFloat16);
  Tensors results = run_loss(data, none);
  EXPECT_EQ(results[0].item<double>(), 0.0);
  EXPECT_EQ(results[2].abs().max().item<float>(), 0.0F);
  data = make_loss({}, at::kBFloat16);
  data.targets.fill_(-1);
  results = run_loss(data, {});
  for (const Tensor& result : results) EXPECT_EQ(result.abs().max().item<double>(), 0.0);
}

TEST(GpuLinearCrossEntropy, TargetOutsideTheVocabularyGivesNan) {
  LossData data = make_loss({}, at::kBFloat16);
  data.targets.slice(0, 2, 3).fill_(1000);
  const Tensor values = linear_cross_entropy_values(data.x, data.weight, data.targets);
  EXPECT_EQ(values.isnan().sum().item<int64_t>(), 1);
  EXPECT_TRUE(values[2].isnan().item<bool>());
}

TEST(GpuLinearCrossEntropy, BackwardRunsOnce) {
  const LossData data = make_loss({}, at::kFloat);
  const Tensor x = leaf(data.x), loss = linear_cross_entropy_sum(x, data.weight, data.targets);
  torch::autograd::grad({loss}, {x}, {}, /*retain_graph=*/true);
  EXPECT_THAT(message_of([&] { torch::autograd::grad({loss}, {x}, {}, true); }),
              HasSubstr("allowed: once per forward"));
}

TEST(GpuLinearCrossEntropy, Repeatable) {
  for (const int64_t chunk_rows : {0, 64}) {
    const LossCase c{
        .rows = 256, .width = 128, .vocabulary = 5001, .chunk_rows = chunk_rows, .scale = 0.25};
    const LossData data = make_loss(c, at::kBFloat16);
    const Tensor scale = device_scalar(c.scale);
    expect_repeatable([&] {
      const Tensor x = leaf(data.x), weight = leaf(data.weight);
      return values_and_gradients(
          {linear_cross_entropy_sum(x, weight, data.targets, c.chunk_rows)}, {x, weight}, {scale});
    });
  }
}

TEST(GpuLinearCrossEntropy, BadInputIsRefusedByName) {
  const LossData good = make_loss({}, at::kBFloat16);
  const auto refusal = [&](const std::function<void(LossData&)>& spoil, int64_t chunk_rows = 0) {
    return message_of([&] {
      LossData in = good;
      spoil(in);
      linear_cross_entropy_sum(in.x, in.weight, in.targets, chunk_rows);
    });
  };
  EXPECT_THAT(refusal([](auto& in) { in.x = in.x.cpu(); }),
              HasSubstr("linear_cross_entropy_sum: x is on cpu, allowed: cuda"));
  EXPECT_THAT(refusal([](auto& in) { in.x = in.x.unsqueeze(0); }),
              HasSubstr("x has 3 dimensions, allowed: 2"));
  EXPECT_THAT(refusal([](auto& in) { in.weight = in.weight.to(at::kFloat); }),
              HasSubstr("weight has dtype Float, allowed: BFloat16"));
  EXPECT_THAT(refusal([](auto& in) { in.weight = in.weight.slice(1, 0, 63); }),
              HasSubstr("weight has shape [1000, 63], allowed: [1000, 64]"));
  EXPECT_THAT(refusal([](auto& in) { in.targets = in.targets.to(at::kInt); }),
              HasSubstr("targets has dtype Int, allowed: Long"));
  EXPECT_THAT(refusal([](auto& in) { in.targets = in.targets.slice(0, 1); }),
              HasSubstr("targets has shape [49], allowed: [50]"));
  EXPECT_THAT(refusal([](auto&) {}, -1), HasSubstr("chunk_rows is -1, allowed: not negative"));
}

// --- the loss beside a teacher

struct DistillationCase {
  LossCase loss;
  int64_t teacher_width = 40;
  double share = 0.7;
};

ops::Teacher make_teacher(const DistillationCase& c, at::ScalarType type) {
  at::manual_seed(6);
  return {random({c.loss.rows, c.teacher_width}, type),
          random({c.loss.vocabulary, c.teacher_width}, type)
              .div(std::sqrt(double(c.teacher_width)) / 2),
          c.share};
}

Tensors run_distillation(const LossData& data, const ops::Teacher& teacher, const LossCase& c) {
  const Tensor x = leaf(data.x), weight = leaf(data.weight);
  return values_and_gradients(
      {ops::linear_distillation_sum(x, weight, data.targets, teacher, c.chunk_rows)},
      {x, weight},
      {device_scalar(c.scale)});
}

void expect_exact_distillation(const DistillationCase& c) {
  for (const auto& [type, bar] :
       {std::pair{at::kBFloat16, 1e-2}, std::pair{at::kFloat, kFloatBar}}) {
    SCOPED_TRACE(testing::Message()
                 << c.loss << " E" << c.teacher_width << " share " << c.share << " " << type);
    const LossData data = make_loss(c.loss, type);
    const ops::Teacher teacher = make_teacher(c, type);
    const Tensor x = exact_leaf(data.x), weight = exact_leaf(data.weight),
                 student = at::log_softmax(at::mm(x, weight.t()), 1);
    const Tensor log_teacher = at::log_softmax(
        at::mm(teacher.x_NE.to(at::kDouble), teacher.weight_VE.to(at::kDouble).t()), 1);
    const Tensor divergence =
        (log_teacher.exp() * (log_teacher - student)).sum(1) * (data.targets >= 0);
    const Tensor loss =
        losses_oracle(x, weight, data.targets).sum() * (1 - c.share) + divergence.sum() * c.share;
    const Tensors actual = run_distillation(data, teacher, c.loss);
    EXPECT_EQ(actual[0].scalar_type(), at::kDouble);
    expect_close(
        actual, values_and_gradients({loss}, {x, weight}, {device_scalar(c.loss.scale)}), bar);
    // Without gradients the same sum.
    EXPECT_TRUE(at::equal(
        ops::linear_distillation_sum(data.x, data.weight, data.targets, teacher, c.loss.chunk_rows),
        actual[0]));
  }
}

TEST(GpuLinearDistillation, AgreesWithFloat64) {
  for (const double share : {0.0, 0.3, 1.0}) expect_exact_distillation({.share = share});
  expect_exact_distillation({.loss = {.scale = 1.0 / 12345.0}});
  expect_exact_distillation({.loss = {.rows = 1}, .teacher_width = 8});
  expect_exact_distillation({.loss = {.left_out = false}, .teacher_width = 96});
}

TEST(GpuLinearDistillation, ChunksAndVocabularies) {  // both rows in shared memory, and beyond it
  for (const int64_t chunk_rows : {1, 7, 50, 1000})
    expect_exact_distillation({.loss = {.chunk_rows = chunk_rows}});
  for (const int64_t vocabulary : {2, 7, 9, 4097, 8193, 29001, 50257, 120001}) {
    expect_exact_distillation(
        {.loss = {.rows = 9, .width = 24, .vocabulary = vocabulary, .chunk_rows = 4}});
  }
}

TEST(GpuLinearDistillation, AShareOfNothingIsTheCrossEntropyBitForBit) {
  const LossCase c{.rows = 70, .vocabulary = 5001};
  const LossData data = make_loss(c, at::kBFloat16);
  expect_same_bits(
      run_distillation(data, make_teacher({.loss = c, .share = 0.0}, at::kBFloat16), c),
      run_loss(data, c));
}

TEST(GpuLinearDistillation, TheSameModelHasNoDivergenceAndNoGradient) {
  const LossCase c{.vocabulary = 5001};
  const LossData data = make_loss(c, at::kBFloat16);
  const Tensors results = run_distillation(data, {data.x, data.weight, 1.0}, c);
  EXPECT_LE(std::abs(results[0].item<double>()), 1e-4 * static_cast<double>(c.rows));
  for (size_t i = 1; i < results.size(); ++i)
    EXPECT_LE(results[i].abs().max().item<float>(), 1e-4F);
}

TEST(GpuLinearDistillation, RepeatableAndCaptured) {
  const DistillationCase c{
      .loss = {.rows = 256, .width = 128, .vocabulary = 5001, .chunk_rows = 64, .scale = 0.25},
      .teacher_width = 64};
  const LossData data = make_loss(c.loss, at::kBFloat16);
  const ops::Teacher teacher = make_teacher(c, at::kBFloat16);
  const Tensor scale = device_scalar(c.loss.scale);
  expect_repeatable([&] {
    const Tensor x = leaf(data.x), weight = leaf(data.weight);
    return values_and_gradients(
        {ops::linear_distillation_sum(x, weight, data.targets, teacher, c.loss.chunk_rows)},
        {x, weight},
        {scale});
  });
}

TEST(GpuLinearDistillation, BadInputIsRefusedByName) {
  const LossData data = make_loss({}, at::kBFloat16);
  const auto refusal = [&](const std::function<void(ops::Teacher&)>& spoil) {
    ops::Teacher teacher = make_teacher({}, at::kBFloat16);
    spoil(teacher);
    return message_of(
        [&] { ops::linear_distillation_sum(data.x, data.weight, data.targets, teacher); });
  };
  EXPECT_THAT(refusal([](auto& t) { t.x_NE = t.x_NE.cpu(); }),
              HasSubstr("linear_distillation_sum: teacher_x is on cpu, allowed: cuda:0"));
  EXPECT_THAT(refusal([](auto& t) { t.x_NE = t.x_NE.unsqueeze(0); }),
              HasSubstr("teacher_x has 3 dimensions, allowed: 2"));
  EXPECT_THAT(refusal([](auto& t) { t.x_NE = t.x_NE.slice(0, 1); }),
              HasSubstr("teacher_x has shape [49, 40], allowed: [50, 40]"));
  EXPECT_THAT(refusal([](auto& t) { t.weight_VE = t.weight_VE.to(at::kFloat); }),
              HasSubstr("teacher_weight has dtype Float, allowed: BFloat16"));
  EXPECT_THAT(refusal([](auto& t) { t.weight_VE = t.weight_VE.slice(0, 1); }),
              HasSubstr("teacher_weight has shape [999, 40], allowed: [1000, 40]"));
  EXPECT_THAT(refusal([](auto& t) { t.share = 1.5; }), HasSubstr("share is 1.5, allowed: 0 to 1"));
}

// --- the embedding

void expect_exact_embedding(const Tensor& tokens,
                            int64_t vocabulary,
                            int64_t width,
                            bool positions) {
  for (const auto type : {at::kBFloat16, at::kFloat}) {
    SCOPED_TRACE(testing::Message()
                 << type << " tokens " << tokens.sizes() << " V" << vocabulary << " D" << width);
    at::manual_seed(9);
    const Tensor weight = random({vocabulary, width}, type),
                 position = random({tokens.size(-1), width}, type);
    std::vector<int64_t> sizes = tokens.sizes().vec();
    sizes.push_back(width);
    const Tensor grad = random(sizes, type) + 0.5;
    Tensors inputs{leaf(weight)}, exact_inputs{exact_leaf(weight)};
    if (positions) inputs.push_back(leaf(position)), exact_inputs.push_back(exact_leaf(position));
    const Tensor out =
        ops::embedding(inputs[0], tokens, positions ? std::optional(inputs[1]) : std::nullopt);
    Tensor exact = exact_inputs[0].index_select(0, tokens.reshape({-1})).view(sizes);
    if (positions) exact = exact + exact_inputs[1];
    const Tensors actual = values_and_gradients({out}, inputs, {grad}),
                  wanted = values_and_gradients({exact}, exact_inputs, {grad});
    for (const Tensor& result : actual) EXPECT_EQ(result.scalar_type(), type);
    expect_close(actual, wanted, bar_of(type));
  }
}

Tensor random_tokens(at::IntArrayRef sizes, int64_t vocabulary) {
  return at::randint(vocabulary, sizes, at::TensorOptions(at::kCUDA).dtype(at::kLong));
}

TEST(GpuEmbedding, AgreesWithFloat64) {
  for (const int64_t width : {1, 7, 8, 12, 100, 768, 1031}) {
    for (const bool positions : {true, false})
      expect_exact_embedding(random_tokens({3, 50}, 40), 40, width, positions);
  }
  expect_exact_embedding(random_tokens({1, 1}, 5), 5, 64, true);
  expect_exact_embedding(random_tokens({17}, 5), 5, 64, true);
  expect_exact_embedding(random_tokens({8, 512}, 50257), 50257, 64, true);
}

TEST(GpuEmbedding, RepeatedTokens) {
  for (const int64_t count : {63, 64, 65, 128, 129, 200, 1000, 20000})
    expect_exact_embedding(at::full({1, count}, 2, random_tokens({1}, 2).options()), 4, 72, false);
  for (const int64_t vocabulary : {2, 3, 10, 70})
    expect_exact_embedding(random_tokens({6, 1001}, vocabulary), vocabulary, 72, true);
  // Runs of every length between 60 and 70, 120 and 135: they begin anywhere in the sorted order.
  Tensors runs;
  for (int64_t token = 0; token < 27; ++token) {
    runs.push_back(
        at::full({token < 11 ? 60 + token : 109 + token}, token, random_tokens({1}, 2).options()));
  }
  const Tensor tokens = at::cat(runs);
  expect_exact_embedding(
      tokens.index_select(0, at::randperm(tokens.numel(), tokens.options())).view({1, -1}),
      27,
      40,
      false);
}

TEST(GpuEmbedding, TokenOutsideTheVocabularyGivesNanAndNoGradient) {
  const Tensor weight = leaf(random({10, 16}, at::kFloat));
  Tensor tokens = random_tokens({1, 6}, 10);
  tokens.slice(1, 1, 2).fill_(10);
  tokens.slice(1, 4, 5).fill_(-1);
  const Tensor out = ops::embedding(weight, tokens);
  EXPECT_EQ(out.isnan().sum().item<int64_t>(), 2 * 16);
  const Tensor grad = torch::autograd::grad({out}, {weight}, {at::ones_like(out)})[0];
  EXPECT_EQ(grad.sum().item<double>(), 4 * 16.0);
}

TEST(GpuEmbedding, Repeatable) {
  const Tensor weight = random({300, 768}, at::kBFloat16),
               position = random({512, 768}, at::kBFloat16),
               grad = random({4, 512, 768}, at::kBFloat16);
  const Tensor tokens = at::where(random_tokens({4, 512}, 3) > 0,
                                  random_tokens({4, 512}, 300),
                                  at::zeros({}, random_tokens({1}, 2).options()));
  expect_repeatable([&] {
    const Tensor w = leaf(weight), p = leaf(position);
    return values_and_gradients({ops::embedding(w, tokens, p)}, {w, p}, {grad});
  });
}

TEST(GpuEmbedding, BadInputIsRefusedByName) {
  const Tensor weight = random({10, 16}, at::kBFloat16), tokens = random_tokens({2, 6}, 10),
               position = random({6, 16}, at::kBFloat16);
  EXPECT_THAT(message_of([&] { ops::embedding(weight.cpu(), tokens); }),
              HasSubstr("embedding: weight is on cpu, allowed: cuda"));
  EXPECT_THAT(message_of([&] { ops::embedding(weight, tokens.cpu()); }),
              HasSubstr("tokens is on cpu, allowed: cuda:0"));
  EXPECT_THAT(message_of([&] { ops::embedding(weight, tokens.to(at::kInt)); }),
              HasSubstr("tokens has dtype Int, allowed: Long"));
  EXPECT_THAT(message_of([&] { ops::embedding(weight, tokens, position.slice(0, 1)); }),
              HasSubstr("position has shape [5, 16], allowed: [6, 16]"));
  EXPECT_THAT(message_of([&] { ops::embedding(weight, tokens, position.to(at::kFloat)); }),
              HasSubstr("position has dtype Float, allowed: BFloat16"));
}

}  // namespace
}  // namespace t2r::ops
