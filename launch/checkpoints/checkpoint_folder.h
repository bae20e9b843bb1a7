#pragma once

#include <cstdint>
#include <filesystem>
#include <optional>
#include <string>
#include <vector>

#include "launch/checkpoints/training_position.h"

namespace t2r::launch {

/// Name of a checkpoint: "step-" and eight digits, or more where the step has more.
std::string checkpoint_name(int64_t step);

/// The step of a name that checkpoint_name() gives; none for any other, as "step-00000006-keep".
std::optional<int64_t> checkpoint_step(const std::string& name);

/// The folder that holds a run's checkpoints: their names, the links `latest` and `best`, and what
/// kills and damage leave behind. Touches nothing but names that t2r itself makes. One process at a
/// time may change it (RunFolder's lock).
class CheckpointFolder {
 public:
  explicit CheckpointFolder(std::filesystem::path path) : path_(std::move(path)) {}

  const std::filesystem::path& path() const { return path_; }
  std::filesystem::path checkpoint(int64_t step) const { return path_ / checkpoint_name(step); }

  /// Steps of the checkpoints, the highest first, by number; empty if there is no folder.
  /// @throws UnreadableError  if it is there and cannot be listed
  std::vector<int64_t> steps() const;

  /// An empty folder to write the checkpoint of `step` into, beside its name.
  /// @throws WriteError
  std::filesystem::path make_temporary(int64_t step) const;

  /// Gives a complete, synced folder the checkpoint's name. What had that name is set aside.
  /// Returns whether the name is sure to outlive a power cut; a warning says it if not.
  /// @throws WriteError  if it has not got the name
  bool publish(const std::filesystem::path& temporary, int64_t step) const;

  /// Points `latest` and `best` where a position says. A link that cannot be made, as on a file
  /// system without links, is a warning: both are for people, and loading does not need them.
  void point_links(const TrainingPosition& position) const;

  /// The step that the link `best` names; none without one.
  std::optional<int64_t> linked_best() const;

  /// Removes checkpoints of before `position` beyond the `num_kept` newest; never the newest, never
  /// the best, and none of later steps. What cannot be listed or removed is a warning.
  void remove_old(const TrainingPosition& position, int64_t num_kept) const;

  /// Renames a checkpoint to "damaged-<name>", where neither loading nor remove_old() sees it.
  /// Returns the name. @throws WriteError
  std::string set_aside(int64_t step) const;

  /// Removes what killed processes were writing or removing.
  void remove_temporaries() const;

 private:
  void point_link(const char* link, const std::optional<int64_t>& step) const;

  std::filesystem::path path_;
};

/// `folder` itself, or the checkpoint that it means: where it is named `latest` or `best` and lies
/// beside checkpoints, what the newest whole manifest says. So a kill between a checkpoint and its
/// link is not seen by readers, and a file system without links has both names. Damaged manifests
/// are named in a warning.
/// @throws UnreadableError  if one is there and cannot be read: it may be the one that is meant
std::filesystem::path resolve_checkpoint(const std::filesystem::path& folder);

}  // namespace t2r::launch
