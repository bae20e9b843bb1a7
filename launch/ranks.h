#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "data/corpus.h"
#include "dist/communicator.h"
#include "dist/world.h"
#include "launch/options.h"

namespace t2r::launch {

/// This rank's share of its host's processors. Collective: every rank, same order.
int64_t usable_processors(const dist::World& world, dist::Communicator& communicator);

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
