#pragma once

#include <array>
#include <filesystem>
#include <string>

#include "dist/communicator.h"

namespace t2r::launch {

/// The output folder of a run, held by this job alone: a second job on the same folder is refused.
class RunFolder {
 public:
  /// Makes the folder and takes its lock (rank 0). Collective: every rank, same order.
  /// @throws WriteError  on every rank, if the folder cannot be made or another run holds it; names
  /// the holder
  RunFolder(std::filesystem::path path, dist::Communicator& communicator);
  ~RunFolder();
  RunFolder(const RunFolder&) = delete;
  RunFolder& operator=(const RunFolder&) = delete;

  const std::filesystem::path& path() const { return path_; }
  std::filesystem::path checkpoints() const { return path_ / "checkpoints"; }

 private:
  std::filesystem::path path_;
  std::array<int, 2> locks_ = {-1, -1};  ///< of the folder itself, and of the file `lock`
};

/// Writes `text`, options as TOML, to config.toml in a run's folder. Local.
/// @return  what the file said otherwise before, "key: old -> new; ..."; empty if nothing
/// @throws WriteError
std::string replace_config(const std::filesystem::path& folder, const std::string& text);

}  // namespace t2r::launch
