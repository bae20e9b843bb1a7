#include "launch/threads.h"

#include <ATen/Parallel.h>
#include <sched.h>
#include <unistd.h>

#include <algorithm>
#include <cmath>
#include <fstream>
#include <iterator>
#include <limits>
#include <map>
#include <numeric>
#include <sstream>

#include "base/error.h"

namespace t2r::launch {
namespace {

namespace fs = std::filesystem;

constexpr double kUnlimited = std::numeric_limits<double>::infinity();

// What one thread does in a second, roughly, of float32: docs/results/threads.md.
constexpr double kMultiplyAddsPerSecond = 2e10, kBytesPerSecond = 1e10;

// Work between two waits that a thread is worth.
constexpr double kSecondsPerThread = 50e-6;

// Waits of a layer: projections, attention, MLP, norms, activations.
constexpr int64_t kOperationsPerLayer = 8;

std::string text_of(const fs::path& file) {
  std::ifstream in(file);
  return {std::istreambuf_iterator<char>(in), {}};
}

// Quota over period; no limit where a number is missing, "max" or negative.
double limit_of(const std::string& quota_and_period) {
  std::istringstream in(quota_and_period);
  double quota = 0.0, period = 0.0;
  return in >> quota >> period && quota > 0.0 && period > 0.0 ? quota / period : kUnlimited;
}

double limit_of_group(const fs::path& group, bool is_version_2) {
  if (is_version_2) return limit_of(text_of(group / "cpu.max"));
  return limit_of(text_of(group / "cpu.cfs_quota_us") + " " + text_of(group / "cpu.cfs_period_us"));
}

// A group's and those of all groups that it is in. A container may see its own group as the root.
double limit_of_path(const fs::path& mount, const fs::path& group, bool is_version_2) {
  double limit = limit_of_group(mount, is_version_2);
  fs::path at = mount;
  for (const fs::path& name : group.relative_path()) {
    if (name == "..") break;
    at /= name;
    limit = std::min(limit, limit_of_group(at, is_version_2));
  }
  return limit;
}

bool has_cpu(const std::string& controllers) {
  std::istringstream in(controllers);
  for (std::string name; std::getline(in, name, ',');) {
    if (name == "cpu") return true;
  }
  return false;
}

}  // namespace

std::vector<int> allowed_processors() {
  cpu_set_t mask;
  std::vector<int> processors;
  if (::sched_getaffinity(0, sizeof(mask), &mask) == 0) {
    for (int i = 0; i < CPU_SETSIZE; ++i) {
      if (CPU_ISSET(i, &mask)) processors.push_back(i);
    }
  } else {  // more processors than a mask of this size has
    processors.resize(static_cast<size_t>(std::max(1L, ::sysconf(_SC_NPROCESSORS_ONLN))));
    std::iota(processors.begin(), processors.end(), 0);
  }
  return processors;
}

double granted_processors(std::string_view memberships, const fs::path& root) {
  double granted = kUnlimited;
  std::istringstream lines{std::string(memberships)};
  std::string id, controllers, path;
  while (std::getline(lines, id, ':') && std::getline(lines, controllers, ':') &&
         std::getline(lines, path)) {
    if (controllers.empty()) {
      granted = std::min(granted, limit_of_path(root, path, /*is_version_2=*/true));
    } else if (has_cpu(controllers)) {
      granted = std::min(granted, limit_of_path(root / controllers, path, false));
    }
  }
  return granted;
}

int64_t share_of_processors(const std::vector<std::vector<int>>& masks,
                            size_t rank,
                            double granted) {
  std::map<int, int> users;
  for (const std::vector<int>& mask : masks) {
    for (const int processor : mask) ++users[processor];
  }
  double share = 0.0;
  for (const int processor : masks[rank]) share += 1.0 / users[processor];
  share = std::min(share, granted / static_cast<double>(masks.size()));
  return std::clamp<int64_t>(static_cast<int64_t>(std::floor(share + 1e-6)), 1, kMostThreads);
}

double granted_processors() {
  return granted_processors(text_of("/proc/self/cgroup"), "/sys/fs/cgroup");
}

int64_t usable_processors() {
  return share_of_processors({allowed_processors()}, 0, granted_processors());
}

StepWork work_of_step(const model::Trainable& model, int64_t tokens, bool trains) {
  const model::DecoderConfig& config = model.config();
  const int64_t weights = model.parameters().num_scalars() - config.num_looked_up();
  const double passes = trains ? 3.0 : 1.0;
  return {.multiply_adds = passes * static_cast<double>(weights) * static_cast<double>(tokens),
          .bytes = passes * 4.0 * static_cast<double>(weights),
          .num_operations = static_cast<int64_t>(passes) * kOperationsPerLayer * config.num_layers};
}

int64_t threads_for(const StepWork& work, int64_t usable) {
  const double seconds =
      std::max(work.multiply_adds / kMultiplyAddsPerSecond, work.bytes / kBytesPerSecond);
  const double between_waits =
      seconds / static_cast<double>(std::max<int64_t>(1, work.num_operations));
  return std::clamp<int64_t>(
      static_cast<int64_t>(std::min(1e6, between_waits / kSecondsPerThread)), 1, usable);
}

int64_t set_threads(int64_t threads) {
  require(threads >= 0 && threads <= kMostThreads, concat("set_threads: ", threads));
  at::set_num_threads(static_cast<int>(threads));
  return threads;
}

}  // namespace t2r::launch
