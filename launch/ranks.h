#pragma once

#include "dist/communicator.h"
#include "dist/world.h"
#include "launch/options.h"

namespace t2r::launch {

/// Gives LibTorch `threads` threads, or with 0 this rank's share of the host's processors; returns
/// the number. Local.
int64_t set_threads(int64_t threads, const dist::World& world);

/// Names the first option that is not the same on all ranks. Collective: every rank, same order.
/// @throws ConfigError  on every rank
void check_same_options(dist::Communicator& communicator, const OptionSet& options);

}  // namespace t2r::launch
