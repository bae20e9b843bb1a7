#include "dist/local_communicator.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <atomic>
#include <string>

#include "base/error.h"
#include "dist/gradient_reducer.h"

namespace t2r::dist {
namespace {

using testing::HasSubstr;

TEST(LocalCommunicator, AddsInRankOrderWhenSumsRound) {
  // ((1 + 2^24) + -2^24) + 1 in float32 is 1: the first 1 is rounded away. Other orders give 2.
  run_local_ranks(4, [](Communicator& communicator) {
    constexpr float kParts[] = {1.0f, 16777216.0f, -16777216.0f, 1.0f};
    const torch::Tensor tensor = torch::full({3}, kParts[communicator.rank()]);
    communicator.all_reduce(tensor, Reduction::kSum);
    EXPECT_TRUE(tensor.equal(torch::full({3}, 1.0f)));
  });
}

TEST(LocalCommunicator, WakesEverybodyWhenOneRankAborts) {
  std::atomic<int> num_woken = 0;
  EXPECT_THROW(run_local_ranks(4,
                               [&](Communicator& communicator) {
                                 if (communicator.rank() == 2) communicator.abort("disk full", 73);
                                 try {
                                   communicator.barrier();
                                 } catch (const Error& error) {
                                   EXPECT_EQ(error.exit_code(), ExitCode::kCannotWrite);
                                   EXPECT_STREQ(error.what(), "rank 2 aborted: disk full");
                                   ++num_woken;
                                 }
                               }),
               Error);
  EXPECT_EQ(num_woken, 3);
}

TEST(LocalCommunicator, ThrowsTheFirstExceptionAgainWhenOneRankThrows) {
  try {
    run_local_ranks(4, [](Communicator& communicator) {
      if (communicator.rank() == 1) throw DataError("shard 3 is damaged");
      communicator.barrier();
    });
    FAIL() << "the exception was lost";
  } catch (const DataError& error) {
    EXPECT_STREQ(error.what(), "shard 3 is damaged");
  }
}

TEST(LocalCommunicator, TellsEveryRankWhenCallsDoNotMatch) {
  std::atomic<int> num_told = 0;
  run_local_ranks(3, [&](Communicator& communicator) {
    try {
      communicator.all_reduce(torch::zeros({communicator.rank() == 2 ? 5 : 4}), Reduction::kSum);
    } catch (const ContractError& error) {
      EXPECT_THAT(error.what(), HasSubstr("rank 2 all_reduce(0) of Float [5]"));
      ++num_told;
    }
  });
  EXPECT_EQ(num_told, 3);
}

TEST(LocalCommunicator, LetsReducerGoWhenBackwardThrowsWithBucketsInFlight) {
  // Rank 0's backward throws after its first bucket was launched; rank 1 never launches any.
  EXPECT_THROW(run_local_ranks(2,
                               [](Communicator& communicator) {
                                 const torch::Tensor a = torch::ones({2}).requires_grad_();
                                 const torch::Tensor b = torch::ones({2}).requires_grad_();
                                 const torch::Tensor arena = torch::zeros({4});
                                 a.mutable_grad() = arena.narrow(0, 0, 2);
                                 b.mutable_grad() = arena.narrow(0, 2, 2);
                                 GradientReducer reducer({{"a", a, 0, 2, 0}, {"b", b, 2, 2, 1}},
                                                         arena,
                                                         communicator,
                                                         {.first_cap_bytes = 4, .cap_bytes = 8});
                                 reducer.begin_step();
                                 reducer.begin_micro_step(true);
                                 if (communicator.rank() == 0) {
                                   a.sum().backward();
                                   b.mutable_grad() = torch::Tensor();
                                   b.sum().backward();
                                 }
                                 reducer.finish_step();
                               }),
               ContractError);
}

}  // namespace
}  // namespace t2r::dist
