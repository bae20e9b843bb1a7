#pragma once

#include <filesystem>

#include "dist/shard_plan.h"
#include "model/optim/adamw.h"

namespace t2r::launch {

/// Writes the shard of both moments that belongs to `rank`, as optimizer_part() names it.
/// @throws WriteError
void write_optimizer_part(const std::filesystem::path& folder,
                          const model::AdamW& optimizer,
                          const dist::ShardPlan& shards,
                          int rank);

/// Copies that shard back; `shards` are those of the world that wrote it.
/// @throws DataError  if it does not fit the optimizer
void read_optimizer_part(const std::filesystem::path& folder,
                         model::AdamW& optimizer,
                         const dist::ShardPlan& shards,
                         int rank);

}  // namespace t2r::launch
