#pragma once

#include <filesystem>

#include "model/optim/adamw.h"

namespace t2r::launch {

/// Writes the slice of both moments that belongs to `rank` of `world`, as optimizer_part() names
/// it.
/// @throws WriteError
void write_optimizer_part(const std::filesystem::path& folder,
                          const model::AdamW& optimizer,
                          int rank,
                          int world);

/// Copies that slice back; the world that wrote it may be another than the one that reads.
/// @throws DataError  if it does not fit the optimizer
void read_optimizer_part(const std::filesystem::path& folder,
                         model::AdamW& optimizer,
                         int rank,
                         int world);

}  // namespace t2r::launch
