#include "model/fused_ops.h"
#include "model/loss.h"

#include <gtest/gtest.h>
#include <torch/csrc/autograd/autograd.h>

#include "base/error.h"
#include "model/kernels/cpu/dispatch.h"
#include "tests/model_support.h"

namespace t2r::model {
namespace {

using test::max_relative_error;
using torch::Tensor;

// Compares an op and its gradients with a composition of plain tensor operations.
template <class Op, class Plain>
void expect_same(const Op& op,
                 const Plain& plain,
                 const std::vector<Tensor>& leaves,
                 double tolerance) {
  const Tensor actual = op(), expected = plain();
  ASSERT_EQ(actual.sizes(), expected.sizes());
  EXPECT_LE(max_relative_error(actual, expected), tolerance);
  const Tensor cotangent = torch::randn_like(expected);
  const auto actual_gradients = torch::autograd::grad({actual}, leaves, {cotangent});
  const auto expected_gradients = torch::autograd::grad({expected}, leaves, {cotangent});
  for (size_t i = 0; i < leaves.size(); ++i) {
    EXPECT_LE(max_relative_error(actual_gradients[i], expected_gradients[i]), tolerance)
        << "gradient " << i;
  }
}

TEST(FusedOps, RmsNormEqualsItsFormula) {
  torch::manual_seed(1);
  // float32: 5e-6, since at width 1 the gradient is what cancellation leaves of terms of size 1.
  for (const auto& [dtype, tolerance] :
       {std::pair{torch::kFloat64, 1e-13}, std::pair{torch::kFloat32, 5e-6}}) {
    for (const int64_t width : {1, 5, 16, 67, 576}) {
      const Tensor x = torch::randn({3, 41, width}, dtype).requires_grad_(true);
      const Tensor w = torch::randn({width}, dtype).requires_grad_(true);
      expect_same([&] { return rms_norm(x, w, 1e-5); },
                  [&] { return x * torch::rsqrt(x.pow(2).mean(-1, true) + 1e-5) * w; },
                  {x, w},
                  tolerance);
    }
  }
}

TEST(FusedOps, SwigluEqualsItsFormula) {
  torch::manual_seed(2);
  for (const auto& [dtype, tolerance] :
       {std::pair{torch::kFloat64, 1e-13}, std::pair{torch::kFloat32, 2e-6}}) {
    for (const int64_t width : {1, 7, 16, 100}) {
      const Tensor x = (torch::randn({2, 33, 2 * width}, dtype) * 4.0).requires_grad_(true);
      expect_same([&] { return swiglu(x); },
                  [&] {
                    const auto halves = x.chunk(2, -1);
                    return at::silu(halves[0]) * halves[1];
                  },
                  {x},
                  tolerance);
    }
  }
}

TEST(FusedOps, RotateHeadsEqualsRotateHalf) {
  torch::manual_seed(3);
  const int64_t heads = 5, rotated = 3, dim = 6, length = 9;
  const Tensor x = torch::randn({2, length, heads, dim}, torch::kFloat64).requires_grad_(true);
  const Tensor angle = torch::randn({length, dim / 2}, torch::kFloat64);
  expect_same(
      [&] { return rotate_heads(x, rotated, angle.cos(), angle.sin()); },
      [&] {
        const Tensor front = x.narrow(2, 0, rotated);
        const auto halves = front.chunk(2, -1);
        const Tensor cosine = torch::cat({angle, angle}, -1).cos().unsqueeze(1);
        const Tensor sine = torch::cat({angle, angle}, -1).sin().unsqueeze(1);
        const Tensor turned = front * cosine + torch::cat({-halves[1], halves[0]}, -1) * sine;
        return torch::cat({turned, x.narrow(2, rotated, heads - rotated)}, 2);
      },
      {x},
      1e-14);
}

TEST(FusedOps, LinearCrossEntropyEqualsLogSoftmax) {
  torch::manual_seed(4);
  for (const int64_t vocab : {3, 50, 1000, 40000}) {  // 40000: several blocks of rows
    const Tensor x = torch::randn({70, 8}, torch::kFloat32).requires_grad_(true);
    const Tensor w = (torch::randn({vocab, 8}, torch::kFloat32) * 3.0).requires_grad_(true);
    Tensor targets = torch::randint(vocab, {70}, torch::kInt64);
    targets[5] = -1;
    const Tensor fused = linear_cross_entropy_sum(x, w, targets);
    const Tensor plain =
        at::nll_loss((at::linear(x, w)).log_softmax(-1), targets, {}, at::Reduction::Sum, -1);
    EXPECT_NEAR(fused.item<double>(), plain.item<double>(), 2e-6 * std::abs(plain.item<double>()));
    const auto actual = torch::autograd::grad({fused * 0.5}, {x, w});
    const auto expected = torch::autograd::grad({plain * 0.5}, {x, w});
    EXPECT_LE(max_relative_error(actual[0], expected[0]), 1e-5) << vocab;
    EXPECT_LE(max_relative_error(actual[1], expected[1]), 1e-5) << vocab;
    const Tensor values = linear_cross_entropy_values(x, w, targets);
    EXPECT_EQ(values[5].item<float>(), 0.0f);
    EXPECT_NEAR(values.sum(torch::kFloat64).item<double>(),
                plain.item<double>(),
                2e-6 * std::abs(plain.item<double>()));
  }
}

TEST(FusedOps, LinearDistillationEqualsCrossEntropyAndDivergence) {
  torch::manual_seed(5);
  for (const int64_t vocab : {3, 50, 40000}) {  // 40000: several blocks of rows
    const Tensor x = torch::randn({130, 8}, torch::kFloat32).requires_grad_(true);
    const Tensor w = torch::randn({vocab, 8}, torch::kFloat32).requires_grad_(true);
    TeacherHead teacher{torch::randn({130, 5}, torch::kFloat32),
                        torch::randn({vocab, 5}, torch::kFloat32)};
    Tensor targets = torch::randint(vocab, {130}, torch::kInt64);
    targets[5] = -1;
    const Tensor counts = (targets >= 0).to(torch::kFloat64);
    for (const double share : {0.0, 0.3, 1.0}) {
      SCOPED_TRACE(testing::Message() << vocab << " share " << share);
      teacher.share = share;
      const Tensor exact_x = x.detach().to(torch::kFloat64).requires_grad_(true),
                   exact_w = w.detach().to(torch::kFloat64).requires_grad_(true);
      const Tensor student = at::linear(exact_x, exact_w).log_softmax(-1);
      const Tensor log_teacher =
          at::linear(teacher.x_NE.to(torch::kFloat64), teacher.weight_VE.to(torch::kFloat64))
              .log_softmax(-1);
      const Tensor divergence = (log_teacher.exp() * (log_teacher - student)).sum(1);
      const Tensor cross_entropy =
          at::nll_loss(student, targets, {}, at::Reduction::Sum, /*ignore_index=*/-1);
      const Tensor plain = cross_entropy * (1.0 - share) + (divergence * counts).sum() * share;
      const Tensor fused = linear_distillation_sum(x, w, targets, teacher);
      EXPECT_EQ(fused.scalar_type(), torch::kFloat64);
      EXPECT_NEAR(fused.item<double>(), plain.item<double>(), 3e-6 * plain.item<double>());
      const auto actual = torch::autograd::grad({fused * 0.5}, {x, w});
      const auto expected = torch::autograd::grad({plain * 0.5}, {exact_x, exact_w});
      EXPECT_LE(max_relative_error(actual[0], expected[0].to(torch::kFloat32)), 3e-5);
      EXPECT_LE(max_relative_error(actual[1], expected[1].to(torch::kFloat32)), 3e-5);
    }
  }
}

TEST(FusedOps, LinearCrossEntropySurvivesExtremeLogits) {
  const Tensor x = torch::full({1, 1}, 1e4f);
  const Tensor w = torch::tensor({1.0f, -1.0f, 0.0f}).view({3, 1});
  EXPECT_NEAR(linear_cross_entropy_values(x, w, torch::tensor({0}, torch::kInt64)).item<double>(),
              0.0,
              1e-6);
  EXPECT_NEAR(linear_cross_entropy_values(x, w, torch::tensor({2}, torch::kInt64)).item<double>(),
              1e4,
              1e-2);
  const Tensor nan = torch::full({1, 1}, NAN);
  EXPECT_TRUE(std::isnan(
      linear_cross_entropy_values(nan, w, torch::tensor({0}, torch::kInt64)).item<double>()));
}

TEST(FusedOps, TargetOutsideTheVocabularyIsRefused) {
  const Tensor x = torch::randn({2, 4}), w = torch::randn({10, 4});
  EXPECT_THROW(linear_cross_entropy_sum(x, w, torch::tensor({1, 10}, torch::kInt64)), DataError);
}

}  // namespace
}  // namespace t2r::model
