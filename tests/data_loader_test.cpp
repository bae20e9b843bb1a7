#include "data/loader.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <atomic>
#include <chrono>
#include <filesystem>
#include <memory>
#include <stdexcept>
#include <thread>
#include <vector>

#include "base/error.h"
#include "data/corpus.h"
#include "data/sampler.h"
#include "tests/data_shards.h"
#include "tests/support.h"

namespace t2r::data {
namespace {

using test::count_up;
using test::message_of;
using test::TemporaryFolder;
using test::write_shard;
using ::testing::HasSubstr;

constexpr int64_t kLength = 8;

/// 1,000 tokens in two shards; token i is i, so that a window tells where it came from.
class LoaderTest : public ::testing::Test {
 protected:
  LoaderTest() {
    write_shard(folder_ / "a.h5", {count_up(0, 333)});
    write_shard(folder_ / "b.h5", {count_up(333, 667)});
    corpus_ = std::make_unique<Corpus>(std::vector{folder_.path()});
  }

  TemporaryFolder folder_;
  std::unique_ptr<Corpus> corpus_;
  const Sampler sampler_{1000, kLength, 11};
};

void expect_windows(const Batch& batch, const Sampler& sampler) {
  const std::vector<int64_t>& shape = batch.field(kInputs).shape;
  ASSERT_EQ(shape.at(1), kLength);
  ASSERT_EQ(batch.num_targets(), shape.at(0) * kLength);
  for (int64_t row = 0; row < shape.at(0); ++row) {
    const int64_t first = sampler.first_token(batch.first_sample + row);
    for (int64_t t = 0; t < kLength; ++t) {
      ASSERT_EQ(batch.rows(kInputs)[row * kLength + t], first + t);
      ASSERT_EQ(batch.rows(kTargets)[row * kLength + t], first + t + 1);
    }
  }
}

TEST_F(LoaderTest, GivesThePlannedMicroBatchesOfEveryRank) {
  for (const int world : {1, 2, 3}) {
    for (int rank = 0; rank < world; ++rank) {
      const BatchPlan plan{.global_batch = 10, .micro_batch = 3, .rank = rank, .world = world};
      Loader loader(*corpus_, sampler_, plan, {});
      // 30 steps are 300 samples: more than two epochs of 124 windows.
      for (int64_t cursor = 0; cursor < 300; cursor += 10) {
        const std::vector<SampleRange> pieces = plan.micro_batches(cursor);
        for (const SampleRange& piece : pieces) {
          const Batch batch = loader.next();
          ASSERT_EQ(batch.first_sample, piece.first);
          ASSERT_EQ(batch.field(kInputs).shape, (std::vector<int64_t>{piece.count, kLength}));
          ASSERT_EQ(batch.ends_step, piece == pieces.back());
          ASSERT_NO_FATAL_FAILURE(expect_windows(batch, sampler_));
        }
      }
    }
  }
}

TEST_F(LoaderTest, ResumesAtACursorOnAnotherWorldSize) {
  Loader before(*corpus_, sampler_, {.global_batch = 6, .micro_batch = 6}, {});
  for (int step = 0; step < 5; ++step) before.next();
  Loader rank0(*corpus_, sampler_, {6, 6, 0, 2}, {.cursor = 30});
  Loader rank1(*corpus_, sampler_, {6, 6, 1, 2}, {.cursor = 30});
  for (int step = 0; step < 40; ++step) {
    const Batch whole = before.next();
    const Batch halves[2] = {rank0.next(), rank1.next()};
    for (int64_t i = 0; i < 6 * kLength; ++i) {
      const Batch& half = halves[i / (3 * kLength)];
      ASSERT_EQ(whole.rows(kInputs)[i], half.rows(kInputs)[i % (3 * kLength)]);
    }
  }
}

TEST_F(LoaderTest, StopsWithAFullQueue) {
  std::atomic<int> num_allocated = 0;
  {
    LoaderOptions options;
    options.queue_depth = 2;
    options.allocate = [&](int64_t num_elements) {
      ++num_allocated;
      return allocate_pageable(num_elements);
    };
    const Loader loader(*corpus_, sampler_, {.global_batch = 4, .micro_batch = 4}, options);
    while (num_allocated < 3) std::this_thread::yield();
    std::this_thread::sleep_for(std::chrono::milliseconds(20));
  }
  EXPECT_EQ(num_allocated, 3) << "two batches wait and one is held: the queue is bounded";
}

TEST_F(LoaderTest, StopsAtAnyMoment) {
  for (int trial = 0; trial < 300; ++trial) {
    Loader loader(*corpus_, sampler_, {.global_batch = 4, .micro_batch = 2}, {.queue_depth = 3});
    for (int i = 0; i < trial % 7; ++i) loader.next();
  }
}

TEST_F(LoaderTest, KeepsABatchAliveAfterItself) {
  Batch batch;
  {
    Loader loader(*corpus_, sampler_, {.global_batch = 4, .micro_batch = 4}, {});
    batch = loader.next();
  }
  expect_windows(batch, sampler_);
}

TEST_F(LoaderTest, WritesIntoTheMemoryItIsGiven) {
  std::vector<int64_t> memory(2 * 4 * kLength + 1, -1);
  int num_left = 1;
  LoaderOptions options;
  options.allocate = [&](int64_t num_elements) -> BatchMemory {
    if (num_left-- == 0) throw std::runtime_error("no pinned memory left");
    EXPECT_EQ(num_elements, static_cast<int64_t>(memory.size()));
    return {memory.data(), nullptr};
  };
  Loader loader(*corpus_, sampler_, {.global_batch = 4, .micro_batch = 4}, options);
  const Batch batch = loader.next();
  EXPECT_EQ(batch.rows(kInputs), memory.data());
  expect_windows(batch, sampler_);
  EXPECT_THAT(message_of<std::runtime_error>([&] { loader.next(); }),
              HasSubstr("no pinned memory left"));
}

TEST_F(LoaderTest, ThrowsTheErrorOfItsThreadAfterTheBatchesBefore) {
  std::atomic<int> num_allocated = 0;
  LoaderOptions options;
  options.allocate = [&](int64_t num_elements) {
    // The third batch finds shards that have lost their tokens.
    if (++num_allocated == 3) {
      std::filesystem::resize_file(folder_ / "a.h5", 100);
      std::filesystem::resize_file(folder_ / "b.h5", 100);
    }
    return allocate_pageable(num_elements);
  };
  Loader loader(*corpus_, sampler_, {.global_batch = 4, .micro_batch = 4}, options);
  while (num_allocated < 3) std::this_thread::yield();
  std::this_thread::sleep_for(std::chrono::milliseconds(20));
  expect_windows(loader.next(), sampler_);
  expect_windows(loader.next(), sampler_);
  for (int again = 0; again < 2; ++again) {
    EXPECT_THAT(message_of<DataError>([&] { loader.next(); }), HasSubstr("the file ends before"));
  }
}

TEST_F(LoaderTest, CountsTheTimeThatItsUserWaits) {
  LoaderOptions options;
  options.queue_depth = 1;
  options.allocate = [](int64_t num_elements) {
    std::this_thread::sleep_for(std::chrono::milliseconds(30));
    return allocate_pageable(num_elements);
  };
  Loader slow(*corpus_, sampler_, {.global_batch = 4, .micro_batch = 4}, options);
  slow.next();
  slow.next();
  EXPECT_GE(slow.wait_seconds(), 0.03);

  std::atomic<int> num_allocated = 0;
  options.allocate = [&](int64_t num_elements) {
    ++num_allocated;
    return allocate_pageable(num_elements);
  };
  Loader ready(*corpus_, sampler_, {.global_batch = 4, .micro_batch = 4}, options);
  while (num_allocated < 2) std::this_thread::yield();  // the first is in the queue then
  ready.next();
  EXPECT_EQ(ready.wait_seconds(), 0);
}

TEST_F(LoaderTest, RefusesOptionsThatCannotBeHonoured) {
  EXPECT_THROW(Loader(*corpus_, sampler_, {}, {.cursor = -1}), ConfigError);
  EXPECT_THROW(Loader(*corpus_, sampler_, {}, {.queue_depth = 0}), ConfigError);
  EXPECT_THROW(Loader(*corpus_, sampler_, {.global_batch = 0}, {}), ConfigError);
}

}  // namespace
}  // namespace t2r::data
