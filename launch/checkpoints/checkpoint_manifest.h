#pragma once

#include <cstdint>
#include <string>

#include "base/folder_manifest.h"
#include "launch/checkpoints/run_facts.h"
#include "launch/checkpoints/training_position.h"

namespace t2r::launch {

/// Of a best checkpoint in manifests of version 1, which do not say it.
inline constexpr int64_t kUnknownStep = -1;

/// The fields of a checkpoint's manifest.
struct CheckpointManifest {
  TrainingPosition position;
  int world = 1;      ///< ranks that wrote it: one part of the optimizer each
  RunFacts identity;  ///< what must be equal on resume
  RunFacts options;   ///< what may differ on resume, and is said then

  nlohmann::ordered_json to_fields() const;
};

/// Name of a rank's part of the optimizer's moments.
std::string optimizer_part(int rank, int world);

/// Whether a file is one of those parts, of any world: nothing but training reads them.
bool is_optimizer_part(const std::string& name);

/// Reads and checks the fields: types, ranges, the step of the folder's name, and that exactly the
/// parts of `world` ranks, the config and weights are listed.
/// @param step  that the folder's name says
/// @param file  name for messages
/// @throws DataError  names file, field, value and what is allowed
CheckpointManifest parse_checkpoint_manifest(const FolderManifest& manifest,
                                             int64_t step,
                                             const std::string& file);

}  // namespace t2r::launch
