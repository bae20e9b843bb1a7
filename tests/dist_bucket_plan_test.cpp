#include "dist/bucket_plan.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <random>
#include <string>
#include <utility>

#include "base/error.h"

namespace t2r::dist {
namespace {

using testing::HasSubstr;

// (numel, group) pairs laid out one after another.
std::vector<PlannedSlice> lay_out(const std::vector<std::pair<int64_t, int64_t>>& sizes) {
  std::vector<PlannedSlice> slices;
  int64_t offset = 0;
  for (const auto& [numel, group] : sizes) {
    slices.push_back({offset, numel, group});
    offset += numel;
  }
  return slices;
}

std::vector<std::pair<int64_t, int64_t>> edges(const std::vector<Bucket>& buckets) {
  std::vector<std::pair<int64_t, int64_t>> result;
  for (const Bucket& bucket : buckets) result.emplace_back(bucket.begin, bucket.end);
  return result;
}

using Edges = std::vector<std::pair<int64_t, int64_t>>;

BucketPlanOptions caps(int64_t first, int64_t cap) {
  return {.element_bytes = 1, .first_cap_bytes = first, .cap_bytes = cap};
}

TEST(BucketPlan, EndsFirstBucketEarlyWhenItsCapIsReached) {
  const auto slices = lay_out({{1, 0}, {4, 0}, {5, 0}, {5, 1}});
  EXPECT_EQ(edges(plan_buckets(slices, caps(3, 100))), (Edges{{0, 5}, {5, 15}}));
}

TEST(BucketPlan, CutsAtGroupEdgeWhenNextGroupDoesNotFit) {
  // Groups of 6: a third would make 18 > 14, and must not be torn although 14 - 12 = 2 are free.
  const auto slices = lay_out({{1, 9}, {6, 0}, {2, 1}, {4, 1}, {2, 2}, {4, 2}});
  EXPECT_EQ(edges(plan_buckets(slices, caps(1, 14))), (Edges{{0, 1}, {1, 13}, {13, 19}}));
}

TEST(BucketPlan, CutsAtParameterEdgeWhenGroupIsLargerThanCap) {
  const auto slices = lay_out({{1, 9}, {6, 0}, {6, 0}, {6, 0}});
  EXPECT_EQ(edges(plan_buckets(slices, caps(1, 12))), (Edges{{0, 1}, {1, 13}, {13, 19}}));
}

TEST(BucketPlan, GivesOwnBucketsWhenParameterIsLargerThanCap) {
  const auto slices = lay_out({{2, 0}, {25, 1}, {3, 2}});
  const auto buckets = plan_buckets(slices, caps(1, 10));
  EXPECT_EQ(edges(buckets), (Edges{{0, 2}, {2, 11}, {11, 19}, {19, 27}, {27, 30}}));
  for (size_t b = 1; b <= 3; ++b) {
    EXPECT_EQ(buckets[b].first_slice, 1);
    EXPECT_EQ(buckets[b].last_slice, 1);
  }
}

TEST(BucketPlan, BoundsTheTiedEmbeddingWhenModelIsGpt2) {
  // GPT-2 124M backwards: final norm, 12 layers of 7,087,872, position and tied token embedding.
  std::vector<std::pair<int64_t, int64_t>> sizes = {{768, 0}, {768, 0}};
  for (int64_t layer = 1; layer <= 12; ++layer) {
    for (const int64_t numel :
         {768, 2359296, 3072, 2359296, 768, 768, 768, 589824, 2304, 1769472, 768, 768}) {
      sizes.emplace_back(numel, layer);
    }
  }
  sizes.emplace_back(1024 * 768, 13);
  sizes.emplace_back(50257 * 768, 14);
  const auto buckets = plan_buckets(lay_out(sizes), {});
  EXPECT_EQ(buckets.back().end, 124439808);
  for (const Bucket& bucket : buckets) EXPECT_LE((bucket.end - bucket.begin) * 4, 25 << 20);
  // 154 MB of embedding: six pieces of at most 25 MiB.
  EXPECT_EQ(buckets[buckets.size() - 6].begin, 124439808 - 50257 * 768);
}

TEST(BucketPlan, CoversArenaWithoutHolesWhenSizesAreRandom) {
  std::mt19937 random(5);
  for (int trial = 0; trial < 300; ++trial) {
    std::vector<std::pair<int64_t, int64_t>> sizes;
    const int64_t num_slices = 1 + static_cast<int64_t>(random() % 30);
    for (int64_t i = 0; i < num_slices; ++i) sizes.emplace_back(1 + random() % 40, random() % 3);
    const int64_t first_cap = 1 + random() % 20;
    const int64_t cap = 4 + random() % 30;
    const auto slices = lay_out(sizes);
    const auto buckets =
        plan_buckets(slices, {.element_bytes = 4, .first_cap_bytes = first_cap, .cap_bytes = cap});
    int64_t position = 0;
    int64_t slice = 0;
    for (const Bucket& bucket : buckets) {
      ASSERT_EQ(bucket.begin, position);
      ASSERT_GT(bucket.end, bucket.begin);
      ASSERT_LE((bucket.end - bucket.begin) * 4, cap);
      // The slices named are exactly those that the elements belong to.
      const PlannedSlice& first = slices[bucket.first_slice];
      const PlannedSlice& last = slices[bucket.last_slice];
      ASSERT_TRUE(first.offset <= bucket.begin && bucket.begin < first.offset + first.numel);
      ASSERT_TRUE(last.offset < bucket.end && bucket.end <= last.offset + last.numel);
      position = bucket.end;
      slice = bucket.last_slice;
    }
    ASSERT_EQ(position, slices.back().offset + slices.back().numel);
    ASSERT_EQ(slice, num_slices - 1);
  }
}

TEST(BucketPlan, NamesTheSliceWhenThereIsAHole) {
  auto slices = lay_out({{4, 0}, {4, 0}, {4, 1}});
  slices[2].offset = 9;
  try {
    plan_buckets(slices, {});
    FAIL() << "a hole was accepted";
  } catch (const ContractError& error) {
    EXPECT_THAT(error.what(), HasSubstr("slice 2 has offset 9"));
    EXPECT_THAT(error.what(), HasSubstr("allowed are offset 8"));
  }
  slices[2] = {8, 0, 1};
  EXPECT_THROW(plan_buckets(slices, {}), ContractError);
  EXPECT_THROW(plan_buckets({}, caps(0, 10)), ContractError);
  EXPECT_TRUE(plan_buckets({}, {}).empty());
}

}  // namespace
}  // namespace t2r::dist
