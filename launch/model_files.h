#pragma once

#include <filesystem>
#include <functional>
#include <string>
#include <vector>

namespace t2r::launch {

/// Whether a folder holds what a tokenizer is read from, whole or not.
bool has_tokenizer(const std::filesystem::path& folder);

/// The files of a folder's tokenizer, and those that describe it.
std::vector<std::filesystem::path> tokenizer_companions(const std::filesystem::path& folder);

/// generation_config.json, if the folder has it.
std::vector<std::filesystem::path> generation_companions(const std::filesystem::path& folder);

/// Files of a Hugging Face folder that go along with a model: both of these.
std::vector<std::filesystem::path> companion_files(const std::filesystem::path& folder);

/// A file that goes along with a model, as it was when it was read.
struct CompanionFile {
  std::string name;
  std::string content;
};

/// Takes files into memory.
/// @throws DataError, UnreadableError  if one cannot be read
std::vector<CompanionFile> read_companions(const std::vector<std::filesystem::path>& files);

/// Makes `output` appear only when it is complete: `fill` writes into a temporary folder beside it.
/// @throws ConfigError  if `output` exists
/// @throws WriteError   if it cannot be written; nothing is left behind
void make_folder(const std::filesystem::path& output,
                 const std::function<void(const std::filesystem::path&)>& fill);

}  // namespace t2r::launch
