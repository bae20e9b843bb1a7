#include "dist/parameter_sync.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <string>

#include "tests/dist_ranks.h"

namespace t2r::dist {
namespace {

using testing::HasSubstr;
using testing::Not;

std::string difference(Communicator& communicator, const torch::Tensor& flat) {
  try {
    check_replicas_equal(communicator, flat, "parameters after step 7");
  } catch (const ReplicaError& error) {
    EXPECT_EQ(error.exit_code(), ExitCode::kInternal);
    return error.what();
  }
  return "";
}

TEST(ParameterSync, MakesReplicasEqualWhenBroadcast) {
  run_on_ranks([](Communicator& communicator) {
    const torch::Tensor flat = on_device(torch::full({1000}, 1.0 + communicator.rank()));
    EXPECT_EQ(difference(communicator, flat).empty(), communicator.size() == 1);
    broadcast_parameters(communicator, flat);
    EXPECT_TRUE(flat.equal(on_device(torch::ones({1000}))));
    EXPECT_EQ(difference(communicator, flat), "");
  });
}

TEST(ParameterSync, NamesTheRankWhenOneBitIsFlipped) {
  run_on_ranks([](Communicator& communicator) {
    if (communicator.size() == 1) return;  // one replica has nothing to differ from
    const torch::Tensor flat = on_device(torch::zeros({1000}));
    const int damaged = communicator.size() - 1;
    // The sign of a zero: equal as numbers, different as bits.
    if (communicator.rank() == damaged) flat[999] = -0.0f;
    const std::string message = difference(communicator, flat);
    EXPECT_THAT(message, HasSubstr("parameters after step 7"));
    EXPECT_THAT(message, HasSubstr(concat("rank ", damaged, " (hash")));
    if (communicator.size() > 2) {
      EXPECT_THAT(message, HasSubstr(concat(damaged, " equal ranks of ", communicator.size())));
      EXPECT_THAT(message, Not(HasSubstr("rank 0")));
    } else {
      EXPECT_THAT(message, HasSubstr("no majority"));
    }
  });
}

TEST(ParameterSync, RefusesTensorWhenNotFlat) {
  run_on_ranks([](Communicator& communicator) {
    EXPECT_THROW(broadcast_parameters(communicator, on_device(torch::zeros({2, 2}))),
                 ContractError);
    EXPECT_THROW(
        check_replicas_equal(communicator, on_device(torch::zeros({4})).slice(0, 0, 4, 2), "x"),
        ContractError);
  });
}

}  // namespace
}  // namespace t2r::dist
