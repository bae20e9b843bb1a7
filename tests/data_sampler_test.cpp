#include "data/sampler.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cstdint>
#include <cstdlib>
#include <vector>

#include "base/error.h"
#include "tests/data_shards.h"

namespace t2r::data {
namespace {

using test::message_of;
using ::testing::AllOf;
using ::testing::HasSubstr;

void expect_bijection(int64_t size, uint64_t seed) {
  const Permutation permutation(size, seed);
  std::vector<bool> is_hit(static_cast<size_t>(size), false);
  for (int64_t position = 0; position < size; ++position) {
    const int64_t value = permutation(position);
    ASSERT_GE(value, 0);
    ASSERT_LT(value, size);
    ASSERT_FALSE(is_hit[static_cast<size_t>(value)]) << "size " << size << ", value " << value;
    is_hit[static_cast<size_t>(value)] = true;
  }
}

TEST(Permutation, IsABijectionForEverySizeUpToThousandAndSomeBeyond) {
  for (int64_t size = 1; size <= 1000; ++size) expect_bijection(size, static_cast<uint64_t>(size));
  for (const int64_t size : {4095, 4096, 4097, 65535, 65536, 65537, 262143, 262145, 1000003}) {
    expect_bijection(size, 1);
    expect_bijection(size, 0xFFFFFFFFFFFFFFFFull);
  }
}

TEST(Permutation, StaysInRangeAndInjectiveForHugeSizes) {
  const int64_t size = (int64_t{1} << 61) + 12345;
  const Permutation permutation(size, 3);
  std::vector<int64_t> values;
  for (int64_t i = 0; i < 10000; ++i) values.push_back(permutation(size - 1 - i));
  EXPECT_THAT(values, testing::Each(testing::AllOf(testing::Ge(0), testing::Lt(size))));
  std::sort(values.begin(), values.end());
  EXPECT_EQ(std::adjacent_find(values.begin(), values.end()), values.end());
}

// The order must never change: a resumed run would repeat some windows and miss others.
TEST(Permutation, KeepsItsOrderForEver) {
  const Permutation permutation(10, 42);
  std::vector<int64_t> order;
  for (int64_t i = 0; i < 10; ++i) order.push_back(permutation(i));
  EXPECT_THAT(order, testing::ElementsAre(9, 8, 2, 4, 1, 3, 6, 7, 0, 5));
}

// 50 positions x 50 values, 4,000 keys: each cell expects 80. Chi-square with 49 degrees of freedom
// in each row: 49 +- 9.9; 110 is 6 standard deviations, met by chance about once in 10^6 rows.
TEST(Permutation, PutsEveryValueAtEveryPositionEquallyOften) {
  constexpr int64_t kSize = 50;
  constexpr int kNumKeys = 4000;
  std::vector<std::vector<int>> counts(kSize, std::vector<int>(kSize, 0));
  for (uint64_t key = 0; key < kNumKeys; ++key) {
    const Permutation permutation(kSize, key);
    for (int64_t i = 0; i < kSize; ++i) {
      ++counts[static_cast<size_t>(i)][static_cast<size_t>(permutation(i))];
    }
  }
  const double expected = double{kNumKeys} / kSize;
  for (const std::vector<int>& row : counts) {
    double chi_square = 0;
    for (const int count : row) chi_square += (count - expected) * (count - expected) / expected;
    EXPECT_LT(chi_square, 110);
  }
}

// Neighbours of a corpus should not stay neighbours: a random order of n has 2 such pairs on
// average.
TEST(Permutation, SeparatesNeighbours) {
  constexpr int64_t kSize = 100'000;
  const Permutation permutation(kSize, 9);
  int num_neighbours = 0;
  for (int64_t i = 1; i < kSize; ++i) {
    num_neighbours += std::abs(permutation(i) - permutation(i - 1)) == 1 ? 1 : 0;
  }
  EXPECT_LT(num_neighbours, 20);
}

TEST(Permutation, RefusesPositionsOutside) {
  EXPECT_THROW(Permutation(0, 1), ContractError);
  EXPECT_THROW(Permutation(5, 1)(5), ContractError);
  EXPECT_THROW(Permutation(5, 1)(-1), ContractError);
}

TEST(Sampler, CountsWindowsThatHaveAllTargets) {
  EXPECT_EQ(Sampler(17, 4, 1).num_windows(), 4);  // 4 x 4 inputs, and the 17th as the last target
  EXPECT_EQ(Sampler(16, 4, 1).num_windows(), 3);
  EXPECT_EQ(Sampler(5, 4, 1).num_windows(), 1);
}

TEST(Sampler, SaysHowManyTokensAreNeeded) {
  EXPECT_THAT(message_of<ConfigError>([] { Sampler(4, 4, 1); }),
              AllOf(HasSubstr("4 tokens"), HasSubstr("needs 5")));
  EXPECT_THROW(Sampler(0, 4, 1), ConfigError);
  EXPECT_THROW(Sampler(100, 0, 1), ConfigError);
  EXPECT_THROW(Sampler(100, 4, 1).window(-1), ContractError);
}

TEST(Sampler, SeesEveryWindowOnceInEachEpochInAnotherOrder) {
  const Sampler sampler(1001, 10, 5);
  ASSERT_EQ(sampler.num_windows(), 100);
  std::vector<std::vector<int64_t>> orders;
  for (int64_t epoch = 0; epoch < 3; ++epoch) {
    std::vector<int64_t> order;
    for (int64_t i = 0; i < 100; ++i) {
      EXPECT_EQ(sampler.epoch(epoch * 100 + i), epoch);
      order.push_back(sampler.window(epoch * 100 + i));
      EXPECT_EQ(sampler.first_token(epoch * 100 + i), order.back() * 10);
    }
    orders.push_back(order);
    std::sort(order.begin(), order.end());
    for (int64_t i = 0; i < 100; ++i) ASSERT_EQ(order[static_cast<size_t>(i)], i);
  }
  EXPECT_NE(orders[0], orders[1]);
  EXPECT_NE(orders[1], orders[2]);
}

TEST(Sampler, DependsOnTheSeedAlone) {
  const auto order = [](uint64_t seed) {
    const Sampler sampler(1001, 10, seed);
    std::vector<int64_t> windows;
    for (int64_t i = 0; i < 150; ++i) windows.push_back(sampler.window(i));
    return windows;
  };
  EXPECT_EQ(order(5), order(5));
  EXPECT_NE(order(5), order(6));
}

std::vector<int64_t> samples_of(const std::vector<SampleRange>& ranges) {
  std::vector<int64_t> samples;
  for (const SampleRange& range : ranges) {
    for (int64_t i = 0; i < range.count; ++i) samples.push_back(range.first + i);
  }
  return samples;
}

TEST(BatchPlan, GivesTheSameGlobalOrderToEveryWorldSize) {
  for (const int64_t global_batch : {7, 8, 20, 33}) {
    for (const int world : {1, 2, 3, 4, 7}) {
      for (const int64_t micro_batch : {1, 3, 100}) {
        for (const int64_t cursor : {0, 40, 12345}) {
          std::vector<int64_t> samples;
          for (int rank = 0; rank < world; ++rank) {
            const BatchPlan plan{global_batch, micro_batch, rank, world};
            const std::vector<int64_t> mine = samples_of(plan.micro_batches(cursor));
            EXPECT_EQ(mine, samples_of({plan.share(cursor)}));
            samples.insert(samples.end(), mine.begin(), mine.end());
          }
          ASSERT_EQ(samples, samples_of({{cursor, global_batch}}))
              << "world " << world << ", batch " << global_batch;
        }
      }
    }
  }
}

TEST(BatchPlan, SplitsEvenlyUpToOneSample) {
  for (const int world : {1, 2, 3, 4, 7}) {
    for (int rank = 0; rank < world; ++rank) {
      const int64_t count = BatchPlan{20, 1, rank, world}.share(0).count;
      EXPECT_TRUE(count == 20 / world || count == 20 / world + 1);
    }
  }
}

TEST(BatchPlan, CutsMicroBatchesOfTheAskedSize) {
  const BatchPlan plan{.global_batch = 10, .micro_batch = 4, .rank = 0, .world = 1};
  EXPECT_THAT(plan.micro_batches(100),
              testing::ElementsAre(SampleRange{100, 4}, SampleRange{104, 4}, SampleRange{108, 2}));
}

TEST(BatchPlan, RefusesWhatCannotBeHonoured) {
  EXPECT_THAT(message_of<ConfigError>([] {
                BatchPlan{3, 1, 0, 4}.check();
              }),
              AllOf(HasSubstr("global_batch is 3"), HasSubstr("at least 4")));
  EXPECT_THROW((BatchPlan{0, 1, 0, 1}.check()), ConfigError);
  EXPECT_THROW((BatchPlan{4, 0, 0, 1}.check()), ConfigError);
  EXPECT_THROW((BatchPlan{4, 1, 2, 2}.share(0)), ContractError);
}

}  // namespace
}  // namespace t2r::data
