#include "model/parameters.h"

#include <gtest/gtest.h>

#include "model/nets/decoder_lm.h"
#include "model/optim/adamw.h"
#include "tests/model_support.h"

namespace t2r::model {
namespace {

using torch::Tensor;

// bfloat16 on the CPU serves to test the arena: placement does not depend on the device.
const Placement kRounded{torch::kCPU, torch::kBFloat16};

Tensor random_values(ParameterSet& parameters) {
  const torch::NoGradGuard no_grad;
  std::vector<Tensor> all;
  for (Parameter& parameter : parameters.all()) {
    parameter.value.uniform_(-1.0, 1.0);
    all.push_back(parameter.value.detach().flatten());
  }
  std::reverse(all.begin(), all.end());  // the arena's order
  return at::cat(all);
}

TEST(ParameterArena, KeepsTheExactValuesWhenTheModelsAreRounded) {
  ParameterSet parameters;
  parameters.add_stacked({"q", "k"}, {5, 3}, {7}, 1, true);
  parameters.add("b", {9}, 1, false);
  const Tensor exact = random_values(parameters);
  ParameterArena arena(parameters, kRounded);
  EXPECT_TRUE(arena.has_own_values());
  EXPECT_TRUE(arena.masters().equal(exact));
  EXPECT_TRUE(arena.values().equal(exact.to(torch::kBFloat16)));
  const Parameter& stacked = parameters.all().front();
  EXPECT_EQ(stacked.value.scalar_type(), torch::kBFloat16);
  EXPECT_EQ(stacked.value.data_ptr(), arena.values().narrow(0, 9, 56).data_ptr())
      << "not a view of the arena";
  EXPECT_TRUE(stacked.piece_value(stacked.pieces[1])
                  .equal(exact.narrow(0, 9, 56).view({8, 7}).narrow(0, 5, 3)));

  arena.masters().add_(1.0);
  EXPECT_TRUE(arena.values().equal(exact.to(torch::kBFloat16)));
  arena.round_masters();
  EXPECT_TRUE(arena.values().equal((exact + 1.0).to(torch::kBFloat16)));
}

TEST(ParameterArena, IsItsOwnMasterInFloat32) {
  ParameterSet parameters;
  parameters.add("w", {4, 3}, 0, true);
  const Tensor exact = random_values(parameters);
  const ParameterArena arena(parameters);
  EXPECT_FALSE(arena.has_own_values());
  EXPECT_TRUE(arena.values().is_same(arena.masters()));
  EXPECT_FALSE(parameters.all().front().master.defined());
  EXPECT_TRUE(parameters.all().front().value.flatten().equal(exact));
}

TEST(ParameterArena, AddsRoundedGradientsUpUnrounded) {
  ParameterSet parameters;
  Tensor weight = parameters.add("w", {64}, 0, true);
  random_values(parameters);
  const ParameterArena arena(parameters, kRounded);
  // 1 + 2^-9 needs more bits than bfloat16 has: its sum with 1 would be 1.
  for (const double factor : {1.0, 1.0 / 512})
    (weight * torch::full({64}, factor, torch::kBFloat16)).sum().backward();
  EXPECT_EQ(arena.gradients().scalar_type(), torch::kFloat32);
  EXPECT_TRUE(arena.gradients().equal(torch::full({64}, 1.0 + 1.0 / 512)));
  EXPECT_EQ(weight.grad().data_ptr(), arena.gradients().data_ptr())
      << "autograd replaced the arena's view";
}

TEST(ParameterArena, MovesAModelThatIsOnlyRun) {
  DecoderLM model(test::tiny_config("gpt2"));
  model.initialize(3);
  const Tensor before = model.parameters().all().front().value.detach().clone();
  model.parameters().move_to(kRounded);
  EXPECT_TRUE(model.parameters().all().front().value.equal(before.to(torch::kBFloat16)));
}

}  // namespace
}  // namespace t2r::model
