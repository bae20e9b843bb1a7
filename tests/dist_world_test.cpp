// How jobs start and end: the launcher check, and mpirun's exit code for jobs that go wrong.

#include "dist/world.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/wait.h>

#include <chrono>
#include <cstdio>
#include <map>
#include <string>

#include "base/error.h"

namespace t2r::dist {
namespace {

using testing::HasSubstr;
using Variables = std::map<std::string, std::string>;

std::string refusal(const Variables& variables, int rank, int size) {
  const auto lookup = [&](const std::string& name) -> std::optional<std::string> {
    const auto found = variables.find(name);
    if (found == variables.end()) return std::nullopt;
    return found->second;
  };
  try {
    check_launcher(lookup, rank, size);
  } catch (const ConfigError& error) {
    return error.what();
  }
  return "";
}

TEST(CheckLauncher, RefusesWhenEveryProcessBelievesToBeAlone) {
  const std::string message =
      refusal({{"SLURM_STEP_ID", "0"}, {"SLURM_PROCID", "0"}, {"SLURM_STEP_NUM_TASKS", "4"}}, 0, 1);
  EXPECT_THAT(message, HasSubstr("SLURM_STEP_NUM_TASKS=4"));
  EXPECT_THAT(message, HasSubstr("rank 0 of 1"));
  EXPECT_THAT(message, HasSubstr("srun --mpi=pmix"));
  EXPECT_NE(refusal({{"SLURM_STEP_ID", "0"}, {"SLURM_NTASKS", "4"}}, 0, 1), "");
  EXPECT_NE(refusal({{"OMPI_COMM_WORLD_RANK", "0"}, {"OMPI_COMM_WORLD_SIZE", "2"}}, 0, 1), "");
  EXPECT_NE(refusal({{"PMI_RANK", "0"}, {"PMI_SIZE", "2"}}, 0, 1), "");
}

TEST(CheckLauncher, RefusesWhenRanksDiffer) {
  EXPECT_THAT(refusal({{"PMIX_RANK", "3"}}, 0, 1), HasSubstr("PMIX_RANK=3"));
  EXPECT_THAT(refusal({{"OMPI_COMM_WORLD_RANK", "1"}, {"OMPI_COMM_WORLD_SIZE", "2"}}, 0, 2),
              HasSubstr("OMPI_COMM_WORLD_RANK=1"));
}

TEST(CheckLauncher, NamesTheVariableWhenItIsNoNumber) {
  EXPECT_THAT(refusal({{"OMPI_COMM_WORLD_SIZE", "4x"}}, 0, 4),
              HasSubstr("OMPI_COMM_WORLD_SIZE=\"4x\""));
}

TEST(CheckLauncher, AcceptsWhenLauncherAndMpiAgree) {
  EXPECT_EQ(refusal({}, 0, 1), "");
  EXPECT_EQ(
      refusal(
          {{"OMPI_COMM_WORLD_RANK", "1"}, {"OMPI_COMM_WORLD_SIZE", "2"}, {"PMIX_RANK", "1"}}, 1, 2),
      "");
  // One process in a batch script of a job for four tasks: no step, Slurm's variables are the
  // job's.
  EXPECT_EQ(refusal({{"SLURM_PROCID", "0"}, {"SLURM_NTASKS", "4"}}, 0, 1), "");
  // mpirun inside a job: its daemons were started by a step of one task per node.
  EXPECT_EQ(refusal({{"OMPI_COMM_WORLD_RANK", "3"},
                     {"OMPI_COMM_WORLD_SIZE", "4"},
                     {"SLURM_STEP_ID", "0"},
                     {"SLURM_PROCID", "1"},
                     {"SLURM_STEP_NUM_TASKS", "2"}},
                    3,
                    4),
            "");
}

struct Ending {
  int exit_code;
  std::string output;
};

Ending run_shell(const std::string& command) {
  std::FILE* pipe = popen(("timeout 100 " + command + " 2>&1").c_str(), "r");
  if (pipe == nullptr) throw std::runtime_error("popen failed");
  Ending ending{};
  char buffer[4096];
  size_t num_read = 0;
  while ((num_read = std::fread(buffer, 1, sizeof buffer, pipe)) > 0) {
    ending.output.append(buffer, num_read);
  }
  const int status = pclose(pipe);
  ending.exit_code = WIFEXITED(status) ? WEXITSTATUS(status) : -1;
  return ending;
}

Ending run_probe(int ranks, const std::string& arguments) {
  return run_shell(
      concat("env OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1 OMP_NUM_THREADS=1 ",
             T2R_MPI_LAUNCH,
             " ",
             ranks,
             " ",
             T2R_MPI_PROBE,
             " --gtest_filter=",
             arguments));
}

TEST(World, GivesExitCodeThroughMpirunWhenOneRankAborts) {
  const Ending ending = run_probe(2, "Probe.AbortsOnLastRankWhileOthersWait");
  EXPECT_EQ(ending.exit_code, 75) << ending.output;
  EXPECT_THAT(ending.output, HasSubstr("the probe's abort"));
}

int count_of(const std::string& text, const std::string& part) {
  int count = 0;
  for (size_t at = text.find(part); at != std::string::npos; at = text.find(part, at + 1)) ++count;
  return count;
}

TEST(World, SaysOnceWhatAllRanksEndWith) {
  const Ending ending = run_probe(3, "Probe.EndsOnAllRanksWithOneReason");
  EXPECT_EQ(ending.exit_code, 78) << ending.output;
  EXPECT_EQ(count_of(ending.output, "the probe's common end"), 1) << ending.output;
  EXPECT_EQ(count_of(ending.output, "MPI_ABORT"), 0) << ending.output;
}

TEST(World, SaysWhatIsNotTheSameOfEachRank) {
  const Ending ending = run_probe(2, "Probe.EndsOnAllRanksWithReasonsOfTheirOwn");
  EXPECT_EQ(ending.exit_code, 70) << "rank 0's: " << ending.output;
  EXPECT_EQ(count_of(ending.output, "the probe's end 0"), 1) << ending.output;
  EXPECT_EQ(count_of(ending.output, "the probe's end 1"), 1) << ending.output;
}

TEST(World, NamesARankThatEndsAlone) {
  const auto start = std::chrono::steady_clock::now();
  const Ending ending = run_probe(3, "Probe.EndsOnLastRankWhileOthersWait");
  EXPECT_EQ(ending.exit_code, 75) << ending.output;
  EXPECT_THAT(ending.output,
              HasSubstr("rank 2: the probe's lonely end; the job ends with exit code 75"));
  EXPECT_LT(std::chrono::steady_clock::now() - start, std::chrono::seconds(60));
}

TEST(World, SaysNothingOfMpiWhenAProcessIsAlone) {
  const Ending ending = run_shell(concat("env OMP_NUM_THREADS=1 ",
                                         T2R_MPI_PROBE,
                                         " --gtest_filter=Probe.EndsOnAllRanksWithOneReason"));
  EXPECT_EQ(ending.exit_code, 78) << ending.output;
  EXPECT_THAT(ending.output, HasSubstr("error the probe's common end\n"));
  EXPECT_EQ(count_of(ending.output, "MPI_ABORT"), 0) << ending.output;
}

TEST(CheckLauncher, RefusesSeveralProcessesOfACommandForOne) {
  const auto lookup = [](const std::string& name) -> std::optional<std::string> {
    return name == "OMPI_COMM_WORLD_SIZE" ? std::optional<std::string>("2") : std::nullopt;
  };
  EXPECT_THROW(check_started_alone(lookup, "convert"), ConfigError);
  EXPECT_NO_THROW(check_started_alone([](const std::string&) { return std::nullopt; }, "convert"));
}

TEST(World, EndsTheJobWhenAnExceptionLeavesMainsScope) {
  const Ending ending =
      run_probe(2, "Probe.ThrowsOnLastRankWhileOthersWait --gtest_catch_exceptions=0");
  EXPECT_EQ(ending.exit_code, 70) << ending.output;
  EXPECT_THAT(ending.output, HasSubstr("the probe's exception"));
}

TEST(World, RefusesToStartWhenLauncherCountsMoreProcesses) {
  const Ending ending =
      run_shell(concat("env OMPI_COMM_WORLD_RANK=0 OMPI_COMM_WORLD_SIZE=2 ", T2R_MPI_PROBE));
  EXPECT_EQ(ending.exit_code, 78) << ending.output;
  EXPECT_THAT(ending.output, HasSubstr("OMPI_COMM_WORLD_SIZE=2"));
}

TEST(World, DoesNotHangWhenReductionIsAbandoned) {
  const Ending never = run_probe(2, "Probe.AbandonsReductionThatOthersNeverJoin");
  EXPECT_NE(never.exit_code, 124) << never.output;
  EXPECT_NE(never.exit_code, 0);
  const Ending later = run_probe(2, "Probe.AbandonsReductionThatOthersJoinLater");
  EXPECT_NE(later.exit_code, 124) << later.output;
  EXPECT_THAT(later.output, HasSubstr("verdict of 2 ranks: passed"));
}

TEST(MpiMain, PassesWhenEveryRankPasses) {
  const Ending ending = run_probe(3, "Probe.Passes");
  EXPECT_EQ(ending.exit_code, 0) << ending.output;
  EXPECT_THAT(ending.output, HasSubstr("verdict of 3 ranks: passed"));
}

TEST(MpiMain, FailsWhenOneRankFails) {
  const Ending ending = run_probe(3, "Probe.FailsOnLastRank");
  EXPECT_EQ(ending.exit_code, 1) << ending.output;
  EXPECT_THAT(ending.output, HasSubstr("[rank 2] "));
  EXPECT_THAT(ending.output, HasSubstr("the probe's failure"));
  EXPECT_THAT(ending.output, HasSubstr("verdict of 3 ranks: a test failed; FAILED"));
}

TEST(MpiMain, FailsWhenOneRankSkipsOrNothingRuns) {
  const Ending skipped = run_probe(2, "Probe.SkipsOnLastRank");
  EXPECT_EQ(skipped.exit_code, 1) << skipped.output;
  EXPECT_THAT(skipped.output, HasSubstr("a test was skipped"));
  const Ending empty = run_probe(2, "Probe.IsNotThere");
  EXPECT_EQ(empty.exit_code, 1) << empty.output;
  EXPECT_THAT(empty.output, HasSubstr("no test ran"));
}

TEST(MpiMain, EndsInTimeWhenOneRankThrowsAndOthersWait) {
  const auto start = std::chrono::steady_clock::now();
  const Ending ending = run_probe(2, "Probe.ThrowsOnLastRankWhileOthersWait");
  EXPECT_EQ(ending.exit_code, 1) << ending.output;
  EXPECT_THAT(ending.output, HasSubstr("the probe's exception"));
  EXPECT_THAT(ending.output, HasSubstr("the other ranks did not come to its end"));
  // 10 s of grace, the rest is starting and ending two processes.
  EXPECT_LT(std::chrono::steady_clock::now() - start, std::chrono::seconds(60));
}

}  // namespace
}  // namespace t2r::dist
