#include "model/objectives/objectives.h"

#include <gtest/gtest.h>

#include <string>
#include <vector>

#include "base/error.h"
#include "model/nets/decoder_lm.h"
#include "tests/model_support.h"

namespace t2r::model {
namespace {

using test::max_relative_error;
using test::tiny_config;
using torch::Tensor;

DecoderConfig linear_config(const std::string& family) {
  DecoderConfig config = tiny_config(family);
  config.linear = LinearAttentionConfig{.feature_map = "t2r", .feature_size = 5};
  return config;
}

Tensor random_tokens(int64_t batch, int64_t length) {
  return torch::randint(0, 61, {batch, length}, torch::kInt64);
}

/// Gradients by parameter, undefined where none came; takes them off the model.
std::vector<Tensor> gradients_of(Trainable& model, const Tensor& loss) {
  loss.backward();
  std::vector<Tensor> gradients;
  for (Parameter& parameter : model.parameters().all()) {
    gradients.push_back(parameter.value.grad());
    parameter.value.mutable_grad().reset();
  }
  return gradients;
}

class Objectives : public ::testing::TestWithParam<const Objective*> {
 protected:
  Objectives() {
    model_.initialize(1);
    teacher_.initialize(2);
    torch::manual_seed(3);
  }

  LossTerms loss(const TensorBatch& batch) const {
    return model_.loss(batch,
                       {.objective = GetParam(), .teacher = &teacher_, .teacher_share = 0.7});
  }

  DecoderLM model_{linear_config("llama")};
  DecoderLM teacher_{tiny_config("gpt2")};
};

// Rows of 70 tokens with 13 of padding behind them, and a row of nothing else.
TEST_P(Objectives, PaddingChangesNeitherSumNorGradients) {
  const Tensor inputs = random_tokens(2, 70), targets = random_tokens(2, 70);
  const Tensor padded_inputs = torch::zeros({3, 83}, torch::kInt64),
               padded_targets = torch::full({3, 83}, -100, torch::kInt64);
  padded_inputs.narrow(0, 0, 2).narrow(1, 0, 70).copy_(inputs);
  padded_targets.narrow(0, 0, 2).narrow(1, 0, 70).copy_(targets);
  const LossTerms plain = loss({inputs, targets}), padded = loss({padded_inputs, padded_targets});
  EXPECT_EQ(plain.targets.item<int64_t>(), 140);
  EXPECT_EQ(padded.targets.item<int64_t>(), 140);
  const double sum = plain.sum.item<double>();
  EXPECT_NEAR(padded.sum.item<double>(), sum, 1e-6 * sum);
  const std::vector<Tensor> expected = gradients_of(model_, plain.sum),
                            found = gradients_of(model_, padded.sum);
  int num_compared = 0;
  for (size_t i = 0; i < expected.size(); ++i) {
    ASSERT_EQ(expected[i].defined(), found[i].defined());
    if (!expected[i].defined()) continue;
    ++num_compared;
    // float32 sums in another order
    EXPECT_LE(max_relative_error(found[i], expected[i]), 3e-5)
        << model_.parameters().all()[i].pieces.front().name;
  }
  EXPECT_GT(num_compared, 0);
}

TEST_P(Objectives, WithoutPaddingNothingIsMaskedAndTheBitsAreTheSame) {
  const Tensor inputs = random_tokens(2, 70), targets = random_tokens(2, 70);
  const TensorBatch whole({{kInputs, inputs}, {kTargets, targets}},
                          torch::full({}, 140, torch::kInt64),
                          /*is_padded=*/false);
  const LossTerms masked = loss({inputs, targets}), plain = loss(whole);
  EXPECT_EQ(plain.sum.item<double>(), masked.sum.item<double>());
  EXPECT_EQ(plain.targets.item<int64_t>(), 140);
}

INSTANTIATE_TEST_SUITE_P(Each,
                         Objectives,
                         ::testing::Values(&kText, &kDistillation, &kTransfer),
                         [](const auto& info) { return std::string(info.param->name); });

TEST(Trainable, SaysWhatIsMissing) {
  DecoderLM model(linear_config("gpt2"));
  model.initialize(1);
  const Tensor tokens = random_tokens(1, 4);
  EXPECT_THROW(model.loss({tokens, tokens}, {}), ContractError);
  EXPECT_THROW(model.loss({tokens, tokens}, {.objective = &kDistillation}), ContractError);
  const TensorBatch nothing({}, torch::zeros({}, torch::kInt64), /*is_padded=*/true);
  EXPECT_THROW(model.loss(nothing, {.objective = &kText}), ContractError);
}

TEST(Trainable, ATargetThatDoesNotCountHasNoLoss) {
  DecoderLM model(linear_config("gpt2"));
  model.initialize(1);
  const Tensor tokens = random_tokens(2, 9);
  Tensor targets = random_tokens(2, 9);
  targets[1][4] = -1;
  const Tensor losses = model.target_losses({tokens, targets});
  EXPECT_EQ(losses.sizes(), targets.sizes());
  EXPECT_TRUE(losses.gt(0).equal(targets.ge(0)));
}

}  // namespace
}  // namespace t2r::model
