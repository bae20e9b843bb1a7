// How many threads a command takes: masks, control groups, and the work of a step.
#include "launch/threads.h"

#include <gtest/gtest.h>

#include <cmath>
#include <fstream>

#include "tests/support.h"

namespace t2r::launch {
namespace {

namespace fs = std::filesystem;

void write(const fs::path& file, const std::string& text) {
  fs::create_directories(file.parent_path());
  std::ofstream(file) << text;
}

TEST(Processors, ControlGroupsOfBothVersionsLimitThem) {
  const test::TemporaryFolder folder;
  const fs::path root = folder.path();
  EXPECT_TRUE(std::isinf(granted_processors("", root)));
  EXPECT_TRUE(std::isinf(granted_processors("0::/", root)));
  write(root / "cpu.max", "max 100000\n");
  EXPECT_TRUE(std::isinf(granted_processors("0::/\n", root)));
  write(root / "a/cpu.max", "350000 100000\n");
  write(root / "a/b/cpu.max", "max 100000\n");
  EXPECT_EQ(granted_processors("0::/a/b\n", root), 3.5);  // the group around it counts
  write(root / "a/b/cpu.max", "50000 100000\n");
  EXPECT_EQ(granted_processors("0::/a/b\n", root), 0.5);
  EXPECT_TRUE(std::isinf(granted_processors("0::/elsewhere\n", root)));
  // A container that sees its own group as the root, under the name that it has outside.
  write(root / "cpu.max", "200000 100000\n");
  EXPECT_EQ(granted_processors("0::/docker/0123\n", root), 2.0);

  write(root / "cpu,cpuacct/job/cpu.cfs_quota_us", "150000\n");
  write(root / "cpu,cpuacct/job/cpu.cfs_period_us", "50000\n");
  EXPECT_EQ(granted_processors("5:memory:/x\n4:cpu,cpuacct:/job\n", root), 3.0);
  write(root / "cpu,cpuacct/job/cpu.cfs_quota_us", "-1\n");
  EXPECT_TRUE(std::isinf(granted_processors("4:cpu,cpuacct:/job\n3:cpuset:/job", root)));
}

TEST(Processors, RanksOfAHostShareThem) {
  const double all = INFINITY;
  EXPECT_EQ(share_of_processors({{0, 1, 2, 3}}, 0, all), 4);
  EXPECT_EQ(share_of_processors({{0, 1, 2, 3}, {0, 1, 2, 3}}, 1, all), 2);
  EXPECT_EQ(share_of_processors({{0, 1}, {2, 3}}, 1, all), 2);  // bound by the launcher
  EXPECT_EQ(share_of_processors({{0, 1, 2}, {2, 3, 4}}, 0, all), 2);
  EXPECT_EQ(share_of_processors({{0}, {0}, {0}}, 2, all), 1);
  EXPECT_EQ(share_of_processors({{0, 1, 2}, {0, 1, 2}, {0, 1, 2}}, 0, all), 1);
  EXPECT_EQ(share_of_processors({{0, 1, 2, 3}}, 0, 2.5), 2);
  EXPECT_EQ(share_of_processors({{0, 1, 2, 3}}, 0, 0.5), 1);
  EXPECT_EQ(share_of_processors({{0, 1, 2, 3}, {4, 5, 6, 7}}, 0, 6.0), 3);
  EXPECT_GE(usable_processors(), 1);
  EXPECT_LE(usable_processors(), static_cast<int64_t>(allowed_processors().size()));
}

}  // namespace
}  // namespace t2r::launch
