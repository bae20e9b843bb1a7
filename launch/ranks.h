#pragma once

#include <cstdint>
#include <filesystem>
#include <string>
#include <vector>

#include "data/corpus.h"
#include "dist/communicator.h"
#include "dist/world.h"
#include "launch/options/options.h"
#include "model/trainable.h"

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

/// Refuses what ranks were given from files of their own and do not have in common: folders of one
/// name may hold other content on each host. Collective: every rank, same order.
/// @param value  of this rank, short: a hash, a name
/// @param what   what differs then, for the message: "the model at m"
/// @param remedy the message's end
/// @throws ConfigError  on every rank: names the first rank that differs from 0, and both hosts
void check_same_on_ranks(dist::Communicator& communicator,
                         const dist::World& world,
                         const std::string& value,
                         const std::string& what,
                         const std::string& remedy);

/// Likewise a model that every rank has loaded from `folder`: its config and its weights.
void check_same_model(dist::Communicator& communicator,
                      const dist::World& world,
                      const model::Trainable& model,
                      const std::string& folder);

/// What `folder` means (resolve_checkpoint), found by rank 0 alone: `latest` and `best` may move
/// while a command starts, and all ranks are to read one model. Collective: every rank, same order.
/// @throws UnreadableError  on every rank, as there
std::filesystem::path resolve_on_first_rank(dist::Communicator& communicator,
                                            const std::string& folder);

/// Opens the same shards on every rank; one rank of each host reads them whole and verifies them
/// for all of that host. Collective: every rank, same order.
/// @throws ConfigError, DataError  on every rank: what data::Corpus throws on any, and content that
///                                 is not the same on all
data::Corpus open_corpus(const std::vector<std::string>& names,
                         const dist::World& world,
                         dist::Communicator& communicator);

}  // namespace t2r::launch
