// The losses from hidden states, of text and of a teacher, against float64 and autograd.
#include <ATen/cuda/CUDAGraph.h>
#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <torch/csrc/autograd/autograd.h>
#include <torch/types.h>

#include "model/ops/loss_op.h"
#include "tests/gpu_support.h"
#include "tests/gpu_training_support.h"

namespace t2r::ops {
namespace {

using test::message_of;

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

}  // namespace
}  // namespace t2r::ops
