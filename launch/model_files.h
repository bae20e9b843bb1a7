#pragma once

#include <filesystem>
#include <functional>
#include <vector>

namespace t2r::launch {

/// Files of a Hugging Face folder that go along with a model: tokenizer, generation settings.
std::vector<std::filesystem::path> companion_files(const std::filesystem::path& folder);

/// Makes `output` appear only when it is complete: `fill` writes into a temporary folder beside it.
/// @throws ConfigError  if `output` exists
/// @throws WriteError   if it cannot be written; nothing is left behind
void make_folder(const std::filesystem::path& output,
                 const std::function<void(const std::filesystem::path&)>& fill);

}  // namespace t2r::launch
