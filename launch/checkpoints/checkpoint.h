#pragma once

#include <cstdint>
#include <filesystem>
#include <optional>
#include <string>
#include <vector>

#include "dist/communicator.h"
#include "launch/checkpoints/checkpoint_folder.h"
#include "launch/checkpoints/checkpoint_manifest.h"
#include "launch/checkpoints/run_facts.h"
#include "launch/checkpoints/training_position.h"
#include "launch/model_files.h"
#include "model/files/hugging_face.h"
#include "model/optim/adamw.h"

namespace t2r::launch {

/// What a checkpoint is made of; references to the run's own objects.
struct CheckpointContent {
  model::Trainable& model;
  const model::SourceFormat& format;
  model::AdamW& optimizer;
  RunFacts identity;  ///< what must be equal on resume, besides the model's config
  RunFacts options;   ///< what may differ on resume, and is said then
  const std::vector<CompanionFile>& companions;  ///< put beside the model: the tokenizer's
  bool keeps_older = false;  ///< what is saved may have diverged: no older one is removed
};

/// A run that goes on.
struct ResumedRun {
  TrainingPosition position;
  std::vector<FactDifference> changed_options;
};

/// The checkpoints of a run: <folder>/step-NNNNNNNN, each a Hugging Face model folder with the
/// optimizer's parts and a manifest, and the links `latest` and `best`.
///
/// Protocol: write into a temporary folder, sync and hash every file, agree across ranks, write the
/// manifest and read it back, rename the folder, sync the parent, move the links, and only then
/// remove old ones. A kill at any moment leaves the last complete checkpoint loadable.
class CheckpointStore {
 public:
  /// @param num_kept  newest checkpoints that stay, besides the best
  CheckpointStore(std::filesystem::path folder, int64_t num_kept, dist::Communicator& communicator);

  /// Writes a checkpoint; every rank writes its share of the moments. Collective: every rank, same
  /// order.
  /// @param position  as TrainingPosition::as_saved() gives it
  /// @throws WriteError  on every rank, if any rank could not write; nothing is left of it, and
  ///                     older ones stay
  /// @throws Error       likewise, as its own class, if any rank failed otherwise
  void save(const CheckpointContent& content, const TrainingPosition& position);

  /// Writes what an evaluation found into the manifest of the checkpoint of `position.step`, which
  /// is there already, and moves `best`. Rank 0 alone does it.
  /// Collective: every rank, same order.
  /// @throws WriteError, DataError  on every rank; the manifest is then as it was
  void update(const CheckpointContent& content, const TrainingPosition& position);

  /// Loads the newest checkpoint that verifies; newer ones that do not are named, and set aside
  /// once it is loaded. Empty if there is none. The world may have another size than the one that
  /// wrote it. Mends the links. Collective: every rank, same order.
  /// @throws ConfigError      if the run's identity or the model's config differs from the
  ///                          checkpoint's; says which fields
  /// @throws DataError        if there are checkpoints and none verifies; nothing is touched
  /// @throws UnreadableError  if one cannot be read, which is no damage; nothing is touched
  std::optional<ResumedRun> load(const CheckpointContent& content);

  /// Whether the folder holds any checkpoint. Local.
  bool empty() const { return folder_.steps().empty(); }

  /// Warns on rank 0 if less is free than the checkpoints will need. Local.
  /// @param num_saves  that the rest of the run will make
  void warn_if_disk_is_small(const CheckpointContent& content, int64_t num_saves) const;

 private:
  struct Found;
  Found verify(int64_t step, const CheckpointContent& content) const;
  void read_tensors(const Found& found, const CheckpointContent& content) const;
  std::vector<int64_t> steps_on_first_rank() const;
  void settle(TrainingPosition& position, const std::vector<int64_t>& damaged) const;

  CheckpointFolder folder_;
  int64_t num_kept_;
  dist::Communicator& communicator_;
};

}  // namespace t2r::launch
