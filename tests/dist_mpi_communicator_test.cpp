#include "dist/mpi_communicator.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <string>

#include "base/error.h"
#include "dist/mpi_error.h"
#include "tests/mpi_main.h"

namespace t2r::dist {
namespace {

using testing::HasSubstr;

TEST(MpiCommunicator, GivesTheSameWhenTensorIsSplitIntoSeveralCalls) {
  MpiCommunicator whole(test_world());
  // 1,003 elements in calls of 100: ten full and one of 3.
  MpiCommunicator split(test_world(), {.max_count = 100});
  const torch::Tensor own = torch::arange(1003, torch::kFloat32) + whole.rank();
  const torch::Tensor expected = own.clone();
  const torch::Tensor tensor = own.clone();
  whole.all_reduce(expected, Reduction::kSum);
  split.all_reduce(tensor, Reduction::kSum);
  EXPECT_TRUE(tensor.equal(expected));

  const int root = whole.size() - 1;
  const torch::Tensor copy = own.clone();
  split.broadcast(copy, root);
  EXPECT_TRUE(copy.equal(torch::arange(1003, torch::kFloat32) + root));

  const ShardPlan plan(1003, whole.size());
  const torch::Tensor shards = own.clone();
  split.reduce_scatter(shards, plan);
  split.all_gather(shards, plan);
  EXPECT_TRUE(shards.equal(expected));
}

TEST(MpiCommunicator, RefusesWhenDtypeOrCountIsNotServed) {
  MpiCommunicator communicator(test_world());
  EXPECT_THROW(communicator.all_reduce(torch::zeros({2}, torch::kBFloat16), Reduction::kSum),
               ContractError);
  EXPECT_THROW(MpiCommunicator(test_world(), {.max_count = 0}), ContractError);
  EXPECT_THROW(MpiCommunicator(test_world(), {.max_count = int64_t{1} << 31}), ContractError);
}

TEST(MpiError, SaysCallRankHostAndMpisTextWhenACodeIsInjected) {
  check_mpi(0, "MPI_Barrier");
  constexpr int kMpiErrTruncate = 15;  // Open MPI's MPI_ERR_TRUNCATE
  try {
    check_mpi(kMpiErrTruncate, "MPI_Bcast");
    FAIL() << "the code was accepted";
  } catch (const MpiError& error) {
    EXPECT_EQ(error.exit_code(), ExitCode::kInternal);
    const std::string message = error.what();
    EXPECT_THAT(message, HasSubstr(concat("MPI_Bcast failed on rank ", test_world().rank())));
    EXPECT_THAT(message, HasSubstr("(host " + host_name() + ")"));
    EXPECT_THAT(message, HasSubstr("dist_mpi_communicator_test.cpp:"));
    EXPECT_THAT(message, HasSubstr("code 15"));
    EXPECT_THAT(message, HasSubstr("truncated"));
  }
}

TEST(World, CountsRanksAndHostsWhenOpen) {
  const World& world = test_world();
  MpiCommunicator communicator(test_world());
  EXPECT_EQ(communicator.rank(), world.rank());
  EXPECT_EQ(communicator.size(), world.size());
  ASSERT_EQ(world.hosts().size(), static_cast<size_t>(world.size()));
  EXPECT_EQ(world.hosts()[world.rank()], host_name());
  // The tests run on one host.
  EXPECT_EQ(world.local_rank(), world.rank());
  EXPECT_EQ(world.local_size(), world.size());
  EXPECT_THAT(world.mpi_version(), HasSubstr("MPI"));
  EXPECT_THROW(World(nullptr, nullptr), ContractError);
}

}  // namespace
}  // namespace t2r::dist
