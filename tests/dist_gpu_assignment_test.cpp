#include "dist/gpu_assignment.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <string>
#include <vector>

#include "base/error.h"
#include "dist/nccl/nccl_error.h"
#include "dist/rank_groups.h"

namespace t2r::dist {
namespace {

using testing::AllOf;
using testing::ElementsAre;
using testing::HasSubstr;
using testing::Not;

VisibleGpus sees(const std::string& host, const std::vector<std::string>& ids) {
  return {.host = host, .ids = ids, .why_none = {}};
}

template <class Function>
std::string config_message(const Function& function) {
  try {
    function();
  } catch (const ConfigError& error) {
    EXPECT_EQ(error.exit_code(), ExitCode::kConfig);
    return error.what();
  }
  return "nothing was thrown";
}

TEST(GpuAssignment, GivesLocalRankWhenRanksSeeAllGpusOfTheirHost) {
  EXPECT_THAT(assign_gpus({sees("a", {"g0", "g1"}),
                           sees("a", {"g0", "g1"}),
                           sees("b", {"h0", "h1", "h2"}),
                           sees("b", {"h0", "h1", "h2"})}),
              ElementsAre(0, 1, 0, 1));
}

TEST(GpuAssignment, GivesLocalRankWhenRanksOfHostsAlternate) {
  EXPECT_THAT(assign_gpus({sees("a", {"g0", "g1"}),
                           sees("b", {"h0", "h1"}),
                           sees("a", {"g0", "g1"}),
                           sees("b", {"h0", "h1"})}),
              ElementsAre(0, 0, 1, 1));
}

TEST(GpuAssignment, GivesEachItsOwnWhenLauncherHasDividedThem) {
  EXPECT_THAT(assign_gpus({sees("a", {"g0"}), sees("a", {"g1"}), sees("a", {"g2", "g3"})}),
              ElementsAre(0, 0, 0));
}

TEST(GpuAssignment, NamesHostAndRanksWhenThereIsNoGpu) {
  const std::vector<VisibleGpus> gpus = {
      sees("a", {"g0"}),
      {.host = "b", .ids = {}, .why_none = "no CUDA-capable device is detected"},
      {.host = "b", .ids = {}, .why_none = "no CUDA-capable device is detected"}};
  EXPECT_THAT(config_message([&] { assign_gpus(gpus); }),
              AllOf(HasSubstr("ranks 1, 2: no GPU was found on host b (no CUDA-capable device"),
                    HasSubstr("run with --device cpu"),
                    Not(HasSubstr("rank 0"))));
}

TEST(GpuAssignment, CountsGpusAndRanksOfTheHostWhenThereAreTooFew) {
  EXPECT_THAT(config_message([] {
                assign_gpus({sees("a", {"g0"}), sees("b", {"h0"}), sees("b", {"h0"})});
              }),
              AllOf(HasSubstr("host b has 1 GPU but 2 ranks"), HasSubstr("--device cpu")));
  EXPECT_THAT(config_message([] {
                assign_gpus({sees("b", {"h0", "h1"}), sees("b", {"h0", "h1"}), sees("b", {"h1"})});
              }),
              HasSubstr("host b has 2 GPUs but 3 ranks"));
}

TEST(GpuAssignment, NamesTheVariableWhenRanksSeeOverlappingGpus) {
  EXPECT_THAT(config_message([] {
                assign_gpus({sees("b", {"h0", "h1"}), sees("b", {"h0"})});
              }),
              AllOf(HasSubstr("2 GPUs but 2 ranks, and not every rank sees one of its own"),
                    HasSubstr("CUDA_VISIBLE_DEVICES")));
}

TEST(GpuAssignment, NamesRanksHostAndGpuWhenOneIsShared) {
  const UsedGpu first{.host = "a", .device = 0, .id = "GPU-1", .bus_id = "0000:1b:00.0"};
  const UsedGpu other{.host = "a", .device = 1, .id = "GPU-2", .bus_id = "0000:2b:00.0"};
  check_no_gpu_is_shared({first});
  check_no_gpu_is_shared({first, other});
  const std::string message = config_message([&] {
    check_no_gpu_is_shared({first, other, first});
  });
  EXPECT_THAT(message,
              AllOf(HasSubstr("ranks 0, 2 use one GPU of host a (device 0, 0000:1b:00.0, GPU-1)"),
                    HasSubstr("a GPU of its own"),
                    Not(HasSubstr("rank 1"))));
}

TEST(NcclError, SaysCallPlaceAndNcclsTextWhenComposed) {
  const RankPlace place{.rank = 1, .host = "node7", .device = 3, .bus_id = "0000:1b:00.0"};
  EXPECT_EQ(to_string(place), "rank 1 (host node7, GPU 3 at 0000:1b:00.0)");
  EXPECT_THAT(
      describe_nccl_failure("ncclAllReduce", place, 2, "unhandled system error", "no route"),
      AllOf(HasSubstr("ncclAllReduce failed on rank 1 (host node7, GPU 3 at 0000:1b:00.0)"),
            HasSubstr("code 2, unhandled system error (no route)"),
            HasSubstr("NCCL_DEBUG=INFO")));
  EXPECT_THAT(describe_nccl_failure("ncclAllReduce", place, 2, "unhandled system error", ""),
              HasSubstr("unhandled system error; look at"));
  EXPECT_THAT(describe_nccl_hang("ncclCommInitRankConfig", place, 1.5),
              AllOf(HasSubstr("ncclCommInitRankConfig on rank 1 (host node7"),
                    HasSubstr("did not end within 1.5 s")));
}

TEST(RankGroups, ListsProblemsByWordsWhenThereAreAny) {
  EXPECT_EQ(list_problems({"", ""}), "");
  EXPECT_EQ(list_problems({"full", "", "full", "lost"}), "ranks 0, 2: full; rank 3: lost");
  std::vector<std::string> many;
  for (int rank = 0; rank < 10; ++rank) many.push_back(std::to_string(rank));
  EXPECT_THAT(list_problems(many), HasSubstr("rank 7: 7; and 2 other problems"));
}

}  // namespace
}  // namespace t2r::dist
