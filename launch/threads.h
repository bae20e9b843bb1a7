#pragma once

#include <cstdint>
#include <filesystem>
#include <string>
#include <string_view>
#include <vector>

#include "launch/options/backend_options.h"
#include "model/trainable.h"

namespace t2r::launch {

/// Processors that this process may run on, by number: its affinity mask.
std::vector<int> allowed_processors();

/// Processors' worth of time that this process's control groups grant it, the least of their
/// limits; infinity without one.
///
/// @param memberships  /proc/self/cgroup's text
/// @param root         where the control groups are mounted; both versions are understood
double granted_processors(std::string_view memberships, const std::filesystem::path& root);

/// Of this process.
double granted_processors();

/// The processors that `rank` may use when each of a host's ranks has the processors in its mask:
/// one that several may use counts in parts, and all of a host's ranks together get no more than
/// `granted`. At least 1, and no more than kMostThreads.
/// @param masks  of each rank of this host
int64_t share_of_processors(const std::vector<std::vector<int>>& masks,
                            size_t rank,
                            double granted);

/// The same for a process without ranks.
int64_t usable_processors();

/// What a step computes, to tell how many threads it is worth: operations follow each other, and
/// the threads wait for each other behind each.
struct StepWork {
  double multiply_adds = 0.0;  ///< of the whole step
  double bytes = 0.0;          ///< of weights, read once
  int64_t num_operations = 1;
};

/// One pass of `tokens` tokens through the model, with the backward if it trains.
StepWork work_of_step(const model::Trainable& model, int64_t tokens, bool trains = false);

/// How many of `usable` threads a step is worth: no more than leave each of them enough to do
/// between two waits.
int64_t threads_for(const StepWork& work, int64_t usable);

/// Gives LibTorch so many threads; returns the number. Local.
/// @throws ContractError  if they are more than kMostThreads
int64_t set_threads(int64_t threads);

}  // namespace t2r::launch
