#include "launch/train/metrics.h"

#include <gtest/gtest.h>
#include <signal.h>
#include <sys/resource.h>

#include <cmath>
#include <filesystem>
#include <fstream>
#include <map>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <vector>

#include "launch/stop_signal.h"
#include "tests/support.h"

namespace t2r::launch {
namespace {

using Json = nlohmann::json;

// Throws where a line is not JSON of its own.
std::vector<Json> records(const std::filesystem::path& file) {
  std::vector<Json> all;
  std::ifstream lines(file);
  for (std::string line; std::getline(lines, line);) all.push_back(Json::parse(line));
  return all;
}

StepMetrics step(int64_t number) {
  return {.step = number,
          .total_steps = 10,
          .loss = 2.5,
          .num_tokens = 8,
          .total_num_tokens = 8 * number,
          .seconds = 1.0};
}

TEST(MetricsLog, GivesEveryRecordTimeStepAndTokens) {
  const test::TemporaryFolder folder;
  MetricsLog log(folder / "m", {.step = 3, .num_tokens = 24}, 1, 100);
  log.event("start", {{"text", "a \"quoted\" word"}, {"count", int64_t{1} << 60}, {"none", NAN}});
  log.step(step(4));
  log.event("evaluation", {{"valid_loss", 1.5}});
  const std::vector<Json> found = records(folder / "m");
  ASSERT_EQ(found.size(), 3u);
  EXPECT_EQ(found[0]["text"], "a \"quoted\" word");
  EXPECT_EQ(found[0]["count"], int64_t{1} << 60);
  EXPECT_TRUE(found[0]["none"].is_null());
  for (size_t i = 0; i < 3; ++i) {
    EXPECT_EQ(found[i]["step"], i == 0 ? 3 : 4);
    EXPECT_EQ(found[i]["tokens"], i == 0 ? 24 : 32);
    EXPECT_GT(found[i]["time"].get<double>(), 1.7e9);
  }
  EXPECT_EQ(found[1]["step_tokens"], 8);
}

TEST(MetricsLog, TakesOutWhatIsRepeatedAndWhatIsNotWhole) {
  const test::TemporaryFolder folder;
  const std::filesystem::path file = folder / "m";
  {
    MetricsLog log(file, {}, 1, 100);
    for (int64_t number = 1; number <= 6; ++number) {
      log.step(step(number));
      if (number % 2 == 0) log.event("evaluation", {{"valid_loss", 1.0}});
    }
  }
  // Half a line that the next one was glued to, as earlier versions left it, and one at the end.
  std::ofstream(file, std::ios::app)
      << "{\"event\": \"st{\"event\": \"step\", \"step\": 4}\n{\"eve";
  const auto steps_and_evaluations = [&](int64_t at, bool is_evaluated_again) {
    { MetricsLog log(file, {.step = at, .is_evaluated_again = is_evaluated_again}, 1, 100); }
    std::string text;
    for (const Json& record : records(file))
      text += record["event"].get<std::string>().substr(0, 1) +
              std::to_string(record["step"].get<int>()) + " ";
    return text;
  };
  EXPECT_EQ(steps_and_evaluations(4, false), "s1 s2 e2 s3 s4 e4 ");
  EXPECT_EQ(steps_and_evaluations(4, true), "s1 s2 e2 s3 s4 ");
  EXPECT_EQ(steps_and_evaluations(4, true), "s1 s2 e2 s3 s4 ");  // nothing is left to take out
  EXPECT_EQ(steps_and_evaluations(0, false), "");
  EXPECT_EQ(records(folder / "m.repeated").size(), 3u + 1u + 5u);
}

TEST(MetricsLog, LeavesNoHalfLineWhereTheDiskIsFull) {
  const test::TemporaryFolder folder;
  const std::filesystem::path file = folder / "m";
  MetricsLog log(file, {}, 1, 100);
  log.step(step(1));
  const auto size = std::filesystem::file_size(file);
  rlimit before{};
  ASSERT_EQ(getrlimit(RLIMIT_FSIZE, &before), 0);
  const rlimit full{size + 20, before.rlim_max};
  ignore_file_size_signal();
  ASSERT_EQ(setrlimit(RLIMIT_FSIZE, &full), 0);
  log.step(step(2));
  ASSERT_EQ(setrlimit(RLIMIT_FSIZE, &before), 0);
  EXPECT_EQ(std::filesystem::file_size(file), size);
  log.step(step(3));
  EXPECT_EQ(records(file).back()["step"], 3);
}

TEST(MetricsLog, CountsEvaluationsIntoTheTimeThatIsLeft) {
  const test::TemporaryFolder folder;
  MetricsLog log(folder / "m", {}, 1, 1);
  StepMetrics metrics = step(7);
  ::testing::internal::CaptureStderr();
  log.step(metrics);
  metrics.remaining_evaluation_seconds = 3600.0;
  log.step(metrics);
  const std::string shown = ::testing::internal::GetCapturedStderr();
  EXPECT_NE(shown.find("eta 0m03s"), std::string::npos) << shown;
  EXPECT_NE(shown.find("eta 1h00m"), std::string::npos) << shown;
}

std::string hint(const std::map<std::string, std::string>& environment) {
  return how_to_stop([&](const std::string& name) -> std::optional<std::string> {
    const auto found = environment.find(name);
    if (found == environment.end()) return std::nullopt;
    return found->second;
  });
}

TEST(StopSignal, HintsAtWhatSavesUnderTheLauncher) {
  EXPECT_NE(hint({}).find("Ctrl-C"), std::string::npos);
  EXPECT_NE(hint({{"OMPI_COMM_WORLD_SIZE", "2"}}).find("SIGUSR1 to mpirun"), std::string::npos);
  // mpirun inside a job, whose daemons are a step of Slurm's.
  EXPECT_NE(hint({{"OMPI_COMM_WORLD_SIZE", "2"}, {"SLURM_JOB_ID", "7"}, {"SLURM_STEP_ID", "0"}})
                .find("SIGUSR1 to mpirun"),
            std::string::npos);
  for (const auto& more : {std::map<std::string, std::string>{},
                           {{"PMIX_NAMESPACE", "slurm.pmix.7.1"}, {"OMPI_COMM_WORLD_SIZE", "2"}}}) {
    std::map<std::string, std::string> step{{"SLURM_JOB_ID", "7"}, {"SLURM_STEP_ID", "1"}};
    step.insert(more.begin(), more.end());
    EXPECT_NE(hint(step).find("scancel --signal=USR1 7.1"), std::string::npos);
  }
}

}  // namespace
}  // namespace t2r::launch
