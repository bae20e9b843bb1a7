#include "launch/train/run_records.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <filesystem>
#include <fstream>
#include <map>
#include <nlohmann/json.hpp>
#include <regex>
#include <set>
#include <string>
#include <vector>

#include "base/durable_file.h"
#include "dist/local_communicator.h"
#include "tests/support.h"

namespace t2r::launch {
namespace {

namespace fs = std::filesystem;
using Json = nlohmann::json;
using Keys = std::set<std::string>;
using ::testing::ElementsAre;
using ::testing::HasSubstr;

std::vector<Json> records(const fs::path& folder) {
  std::vector<Json> all;
  std::ifstream lines(folder / "metrics.jsonl");
  for (std::string line; std::getline(lines, line);) all.push_back(Json::parse(line));
  return all;
}

/// What stands between backticks.
std::vector<std::string> names_in(const std::string& text) {
  static const std::regex kName("`([a-z_]+)`");
  std::vector<std::string> names;
  for (std::sregex_iterator it(text.begin(), text.end(), kName); it != std::sregex_iterator(); ++it)
    names.push_back((*it)[1]);
  return names;
}

/// The keys of each event beyond those of all, from the table in docs/runs.md.
std::map<std::string, Keys> documented_keys() {
  std::map<std::string, Keys> keys;
  std::ifstream page(fs::path(T2R_SOURCE_DIR) / "docs/runs.md");
  bool is_table = false;
  for (std::string line; std::getline(page, line);) {
    if (line == "| event | its keys |") is_table = true;
    if (!is_table) continue;
    if (!line.starts_with('|')) break;
    const size_t middle = line.find('|', 1);
    const std::vector<std::string> of_these = names_in(line.substr(middle));
    for (const std::string& event : names_in(line.substr(0, middle)))
      keys[event] = Keys(of_these.begin(), of_these.end());
  }
  return keys;
}

/// A run of a start that did `steps`, evaluated and saved, and came to its end or was stopped.
void run(const fs::path& folder,
         int64_t first_step,
         int64_t last_step,
         bool is_complete,
         const std::string& config = "steps = 4\n") {
  dist::run_local_ranks(2, [&](dist::Communicator& communicator) {
    TrainingPosition position{.step = first_step, .num_tokens = 8 * first_step};
    RunRecords written({.folder = folder, .config_text = config, .is_resumed = first_step > 0},
                       position,
                       communicator);
    EXPECT_EQ(written.metrics() != nullptr, communicator.rank() == 0);
    for (int64_t step = first_step + 1; step <= last_step; ++step) {
      position.step = step;
      position.num_tokens = 8 * step;
      written.step({.step = step,
                    .total_steps = 4,
                    .loss = step == 2 ? NAN : 2.5,
                    .num_tokens = 8,
                    .total_num_tokens = 8 * step,
                    .seconds = 1.0});
    }
    written.checkpoint(0.5);
    position.best = position.evaluated = Evaluation{last_step, 1.25};
    written.evaluation(position, {.loss_sum = 12.5, .num_tokens = 10}, 0.25, /*is_best=*/true);
    written.end(position, "model", is_complete);
  });
}

TEST(RunRecords, AreWhatTheDocumentationSays) {
  const test::TemporaryFolder folder;
  run(folder.path(), 0, 2, /*is_complete=*/false);
  run(folder.path(), 2, 4, /*is_complete=*/true, "steps = 5\n");
  const std::map<std::string, Keys> documented = documented_keys();
  ASSERT_GE(documented.size(), 10u) << "docs/runs.md has another table";
  std::vector<std::string> events;
  for (const Json& record : records(folder.path())) {
    Keys keys;
    for (const auto& [key, value] : record.items()) keys.insert(key);
    for (const char* of_all : {"event", "time", "step", "tokens"})
      EXPECT_EQ(keys.erase(of_all), 1u);
    events.push_back(record["event"]);
    ASSERT_TRUE(documented.contains(events.back())) << events.back();
    EXPECT_EQ(keys, documented.at(events.back())) << events.back();
    EXPECT_EQ(record["tokens"], 8 * record["step"].get<int64_t>()) << events.back();
  }
  EXPECT_THAT(events,
              ElementsAre("start",
                          "step",
                          "step",
                          "checkpoint",
                          "evaluation",
                          "stop",
                          "resume",
                          "config",
                          "step",
                          "step",
                          "checkpoint",
                          "evaluation",
                          "end"));
}

TEST(RunRecords, HoldTheValuesTheyAreGiven) {
  const test::TemporaryFolder folder;
  run(folder.path(), 0, 3, /*is_complete=*/true);
  const std::vector<Json> all = records(folder.path());
  EXPECT_EQ(all[0]["ranks"], 2);
  EXPECT_EQ(all[1]["loss"], 2.5);
  EXPECT_TRUE(all[2]["loss"].is_null());  // not finite
  EXPECT_EQ(all[4]["seconds"], 0.5);
  EXPECT_EQ(all[5]["valid_loss"], 1.25);
  EXPECT_NEAR(all[5]["valid_perplexity"].get<double>(), std::exp(1.25), 1e-6);
  EXPECT_EQ(all[5]["valid_tokens"], 10);
  EXPECT_EQ(all[6]["best_valid_loss"], 1.25);
  EXPECT_EQ(all[6]["best_step"], 3);
}

TEST(RunRecords, SayWhatAStartChanges) {
  const test::TemporaryFolder folder;
  run(folder.path(), 0, 2, /*is_complete=*/false, "steps = 4\nseed = 1\n");
  run(folder.path(), 2, 3, /*is_complete=*/false, "steps = 4\nseed = 1\n");
  run(folder.path(), 3, 4, /*is_complete=*/true, "steps = 5\nseed = 1\n");
  std::vector<std::string> changes;
  for (const Json& record : records(folder.path()))
    if (record["event"] == "config") changes.push_back(record["changes"]);
  EXPECT_THAT(changes, ElementsAre("steps: 4 -> 5"));
  EXPECT_EQ(read_file(folder / "config.toml"), "steps = 5\nseed = 1\n");
  const std::string log = read_file(folder / "train.log");
  EXPECT_THAT(log, HasSubstr("done: 4 steps, 32 tokens; 1 of the steps in "));
  EXPECT_THAT(log, HasSubstr("stopped by a signal, saved: 2 steps, 16 tokens in "));
  EXPECT_THAT(log, HasSubstr("validation loss 1.25, perplexity 3.49"));
}

TEST(RunRecords, StepsThatAreTakenAgainStandThereOnce) {
  const test::TemporaryFolder folder;
  run(folder.path(), 0, 4, /*is_complete=*/false);
  run(folder.path(), 2, 4, /*is_complete=*/true);
  std::vector<int64_t> steps;
  for (const Json& record : records(folder.path()))
    if (record["event"] == "step") steps.push_back(record["step"]);
  EXPECT_THAT(steps, ElementsAre(1, 2, 3, 4));
}

}  // namespace
}  // namespace t2r::launch
