// The step on this host's processors, rank by rank.
#include "launch/train/training_step.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <limits>
#include <memory>
#include <random>
#include <vector>

#include "dist/local_communicator.h"
#include "model/nets/decoder_lm.h"
#include "tests/model_support.h"

namespace t2r::launch {
namespace {

using test::max_relative_error;
using torch::Tensor;

/// Sequences of a batch with the padding that brings them to `length`.
data::Batch batch_of(const std::vector<std::vector<int64_t>>& rows, int64_t length) {
  data::BatchLayout layout = data::language_model_layout(static_cast<int64_t>(rows.size()), length);
  layout.is_padded = true;
  data::Batch batch = data::Batch::make(layout, &data::allocate_pageable);
  std::fill_n(batch.rows(kInputs), batch.field(kInputs).numel(), 0);
  std::fill_n(batch.rows(kTargets), batch.field(kTargets).numel(), -1);
  for (size_t row = 0; row < rows.size(); ++row) {
    if (rows[row].empty()) continue;
    const int64_t begin = static_cast<int64_t>(row) * length;
    std::copy(rows[row].begin(), rows[row].end() - 1, batch.rows(kInputs) + begin);
    std::copy(rows[row].begin() + 1, rows[row].end(), batch.rows(kTargets) + begin);
  }
  batch.count_targets();
  return batch;
}

std::vector<int64_t> sentence(int64_t length, uint64_t seed) {
  std::mt19937_64 generator(seed);
  std::uniform_int_distribution<int64_t> token(0, 60);
  std::vector<int64_t> tokens(static_cast<size_t>(length) + 1);
  std::ranges::generate(tokens, [&] { return token(generator); });
  return tokens;
}

struct Result {
  StepTotals totals;
  Tensor masters;
};

/// One step of one rank, on its micro-batches.
Result step_on(dist::Communicator& communicator, const std::vector<data::Batch>& batches) {
  model::DecoderConfig config = test::tiny_config("llama");
  config.linear = model::LinearAttentionConfig{.feature_map = "t2r", .feature_size = 5};
  model::DecoderLM model(config);
  model.initialize(1);
  model::ParameterArena arena(model.parameters());
  model::AdamW optimizer(arena, {});
  dist::GradientReducer reducer(gradient_slices(arena), arena.gradients(), communicator);
  const auto step = make_host_step({.model = model,
                                    .arena = arena,
                                    .optimizer = optimizer,
                                    .reducer = reducer,
                                    .communicator = communicator,
                                    .clip_norm = 1.0});
  const StepTotals totals =
      step->run({.batches = batches, .update = {.learning_rate = 1e-3, .map_learning_rate = 2e-3}});
  return {totals, arena.masters().clone()};
}

// Padded to one length, cut into micro-batches and shared out over ranks, one of which gets
// nothing that counts: the same mean, gradient and update as each sequence alone.
TEST(HostStep, PaddingAndRanksLeaveTheStepAsItIs) {
  const std::vector<std::vector<int64_t>> sentences{
      sentence(40, 1), sentence(25, 2), sentence(7, 3)};
  Result expected;
  dist::run_local_ranks(1, [&](dist::Communicator& communicator) {
    std::vector<data::Batch> alone;
    for (const auto& one : sentences)
      alone.push_back(batch_of({one}, static_cast<int64_t>(one.size()) - 1));
    expected = step_on(communicator, alone);
  });
  ASSERT_EQ(expected.totals.num_targets, 72);
  EXPECT_GT(expected.totals.gradient_norm, 1.0) << "or clipping is not tested";
  dist::run_local_ranks(3, [&](dist::Communicator& communicator) {
    const std::vector<std::vector<data::Batch>> of_rank{
        {batch_of({sentences[0]}, 44), batch_of({{}, sentences[2]}, 44)},
        {batch_of({sentences[1], {}}, 44)},
        {batch_of({{}}, 44)}};
    const Result found = step_on(communicator, of_rank[static_cast<size_t>(communicator.rank())]);
    EXPECT_EQ(found.totals.num_targets, 72);
    EXPECT_FALSE(found.totals.is_skipped);
    EXPECT_NEAR(found.totals.loss_sum, expected.totals.loss_sum, 1e-6 * expected.totals.loss_sum);
    EXPECT_NEAR(found.totals.gradient_norm, expected.totals.gradient_norm, 1e-5);
    EXPECT_GT(found.totals.loss_max_rank, 0.0);
    // AdamW's first step is the gradient's sign: where that is near zero, rounding decides.
    EXPECT_LE((found.masters - expected.masters).abs().gt(1e-5).sum().item<int64_t>(),
              expected.masters.numel() / 1000);
  });
}

TEST(HostStep, SkipsWhatIsNotFiniteAndLeavesTheParameters) {
  dist::run_local_ranks(2, [&](dist::Communicator& communicator) {
    const Result nothing = step_on(communicator, {batch_of({{}}, 8)});
    EXPECT_TRUE(nothing.totals.is_skipped) << "a step without targets has no mean";
    EXPECT_EQ(nothing.totals.num_targets, 0);
    const Result some = step_on(communicator, {batch_of({sentence(8, 1)}, 8)});
    EXPECT_FALSE(some.totals.is_skipped);
    EXPECT_FALSE(some.masters.equal(nothing.masters));
  });
}

}  // namespace
}  // namespace t2r::launch
