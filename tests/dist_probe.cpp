// Not a test by itself: what dist_world_test.cpp starts through mpirun to see how jobs end.

#include <gtest/gtest.h>

#include <stdexcept>

#include "base/error.h"
#include "tests/dist_ranks.h"
#include "tests/mpi_main.h"

namespace t2r::dist {
namespace {

bool is_last_rank() {
  return test_world().rank() == test_world().size() - 1;
}

void wait_for_all() {
  run_on_ranks([](Communicator& communicator) { communicator.barrier(); });
}

TEST(Probe, Passes) {
  wait_for_all();
}

TEST(Probe, FailsOnLastRank) {
  EXPECT_FALSE(is_last_rank()) << "the probe's failure";
  wait_for_all();
}

TEST(Probe, SkipsOnLastRank) {
  if (is_last_rank()) GTEST_SKIP();
}

TEST(Probe, ThrowsOnLastRankWhileOthersWait) {
  if (is_last_rank()) throw std::runtime_error("the probe's exception");
  wait_for_all();
}

TEST(Probe, AbortsOnLastRankWhileOthersWait) {
  if (is_last_rank()) test_world().abort("the probe's abort", 75);
  wait_for_all();
}

TEST(Probe, EndsOnAllRanksWithOneReason) {
  wait_for_all();
  end_job("the probe's common end", 78);
}

TEST(Probe, EndsOnAllRanksWithReasonsOfTheirOwn) {
  wait_for_all();
  end_job(concat("the probe's end ", test_world().rank()), 70 + test_world().rank());
}

TEST(Probe, EndsOnLastRankWhileOthersWait) {
  if (is_last_rank()) end_job("the probe's lonely end", 75);
  wait_for_all();
}

TEST(Probe, AbandonsReductionThatOthersNeverJoin) {
  run_on_ranks([](Communicator& communicator) {
    if (is_last_rank()) communicator.all_reduce_async(torch::ones({1 << 20}), Reduction::kSum);
  });
}

TEST(Probe, AbandonsReductionThatOthersJoinLater) {
  run_on_ranks([](Communicator& communicator) {
    const torch::Tensor mine = torch::ones({1 << 20});
    if (is_last_rank()) {
      communicator.all_reduce_async(mine.clone(), Reduction::kSum);  // its Work dies at once
      communicator.barrier();
      return;
    }
    const auto work = communicator.all_reduce_async(mine, Reduction::kSum);
    communicator.barrier();
    work->wait();
    EXPECT_EQ(mine[0].item<float>(), static_cast<float>(communicator.size()));
  });
}

}  // namespace
}  // namespace t2r::dist
