#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "data/corpus.h"
#include "dist/communicator.h"
#include "dist/world.h"
#include "launch/options.h"

namespace t2r::launch {

/// Gives LibTorch `threads` threads, or with 0 this rank's share of the host's processors; returns
/// the number. Local.
/// @throws ConfigError  if `threads` is negative
int64_t set_threads(int64_t threads, const dist::World& world);

/// Names the first option that is not the same on all ranks. Collective: every rank, same order.
/// @throws ConfigError  on every rank
void check_same_options(dist::Communicator& communicator, const OptionSet& options);

/// Refuses ranks whose processors run other kernels (AVX-512 beside AVX2): their replicas would not
/// stay the same bits. Collective: every rank, same order.
/// @throws ConfigError  on every rank, naming two ranks and what makes them equal
void check_same_kernels(dist::Communicator& communicator);

/// Opens the same shards on every rank; one rank of each host reads them whole and verifies them
/// for all of that host. Collective: every rank, same order.
/// @throws ConfigError, DataError  on every rank, as data::Corpus does on any
data::Corpus open_corpus(const std::vector<std::string>& names,
                         const dist::World& world,
                         dist::Communicator& communicator);

}  // namespace t2r::launch
