#include "dist/shard_plan.h"

#include <gtest/gtest.h>

#include <vector>

#include "base/error.h"

namespace t2r::dist {
namespace {

std::vector<Shard> all_of(const ShardPlan& plan) {
  std::vector<Shard> shards;
  for (int rank = 0; rank < plan.num_ranks(); ++rank) shards.push_back(plan.of(rank));
  return shards;
}

// Checkpoints are cut here: another cut could not read them.
TEST(ShardPlan, CutsUnevenSizesWhereCheckpointsAreCut) {
  EXPECT_EQ(all_of({10, 4}), (std::vector<Shard>{{0, 2}, {2, 5}, {5, 7}, {7, 10}}));
  EXPECT_EQ(all_of({11, 3}), (std::vector<Shard>{{0, 3}, {3, 7}, {7, 11}}));
  EXPECT_EQ(all_of({9, 3}), (std::vector<Shard>{{0, 3}, {3, 6}, {6, 9}}));
  EXPECT_EQ(all_of({2, 3}), (std::vector<Shard>{{0, 0}, {0, 1}, {1, 2}}));
  EXPECT_EQ(all_of({0, 2}), (std::vector<Shard>{{0, 0}, {0, 0}}));
}

TEST(ShardPlan, CoversEverythingOnceAndAsEquallyAsCanBe) {
  for (const int64_t numel : {int64_t{1}, int64_t{7}, int64_t{1000}, int64_t{1} << 61}) {
    for (int ranks = 1; ranks <= 17; ++ranks) {
      const ShardPlan plan(numel, ranks);
      int64_t expected = 0;
      for (const Shard& shard : all_of(plan)) {
        EXPECT_EQ(shard.begin, expected);
        EXPECT_GE(shard.numel(), numel / ranks);
        EXPECT_LE(shard.numel(), numel / ranks + 1);
        expected = shard.end;
      }
      EXPECT_EQ(expected, numel);
    }
  }
}

TEST(ShardPlan, RefusesWhatIsNoPlanAndWhatDoesNotFit) {
  EXPECT_THROW(ShardPlan(-1, 1), ContractError);
  EXPECT_THROW(ShardPlan(1, 0), ContractError);
  const ShardPlan plan(6, 2);
  EXPECT_THROW(plan.of(2), ContractError);
  EXPECT_THROW(plan.of(-1), ContractError);
  EXPECT_NO_THROW(plan.check(torch::zeros({6}), 2));
  EXPECT_THROW(plan.check(torch::zeros({7}), 2), ContractError);
  EXPECT_THROW(plan.check(torch::zeros({2, 3}), 2), ContractError);
  EXPECT_THROW(plan.check(torch::zeros({12}).slice(0, 0, 12, 2), 2), ContractError);
  EXPECT_THROW(plan.check(torch::Tensor(), 2), ContractError);
  EXPECT_THROW(plan.check(torch::zeros({6}), 3), ContractError);
}

}  // namespace
}  // namespace t2r::dist
