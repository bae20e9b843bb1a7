#pragma once

#include <filesystem>

namespace t2r::model {

/// Refuses what is given for a model and is none, and says what it is: a file, a run's folder, its
/// checkpoints, shards, a LoRA adapter, another framework's files.
/// @throws ConfigError  if there is no folder, or one of another kind
/// @throws DataError    if config.json is missing
void check_model_folder(const std::filesystem::path& folder);

/// Refuses a folder that has config.json and no weights that are read; names what is there instead.
/// @throws DataError  always
[[noreturn]] void refuse_folder_without_weights(const std::filesystem::path& folder);

}  // namespace t2r::model
