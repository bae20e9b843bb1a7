#pragma once

#include <cstdint>
#include <filesystem>
#include <optional>
#include <string>
#include <vector>

#include "dist/communicator.h"
#include "model/adamw.h"
#include "model/hugging_face.h"

namespace t2r::launch {

/// Where a run stands; with the parameters and moments, all that a resumed run needs.
struct TrainingPosition {
  int64_t step = 0;           ///< finished optimizer steps, skipped ones included
  int64_t num_updates = 0;    ///< AdamW's step number: skipped steps do not count
  int64_t sample_cursor = 0;  ///< global index of the next sample
  int64_t num_tokens = 0;     ///< target tokens seen
  double best_loss = 0.0;     ///< nats per token; meaningful if has_best
  bool has_best = false;
  int64_t best_step = 0;  ///< of best_loss
};

/// What a checkpoint is made of; references to the run's own objects.
struct CheckpointContent {
  model::DecoderLM& model;
  const model::SourceFormat& format;
  const model::ParameterArena& arena;
  model::AdamW& optimizer;
  std::string identity;                       ///< options that must be equal on resume
  std::vector<std::filesystem::path> copies;  ///< files to put beside the model: the tokenizer's
};

/// The checkpoints of a run: <folder>/step-NNNNNNNN, each a Hugging Face model folder with the
/// optimizer's parts and a manifest, and the links `latest` and `best`.
///
/// Protocol: write into a temporary folder, sync and hash every file, agree across ranks, write the
/// manifest, rename the folder, sync the parent, move the link, and only then delete old ones. A
/// kill at any moment leaves the last complete checkpoint loadable.
class CheckpointStore {
 public:
  /// @param num_kept  newest checkpoints that stay, besides the best
  CheckpointStore(std::filesystem::path folder, int64_t num_kept, dist::Communicator& communicator);

  /// Writes a checkpoint; every rank writes its share of the moments. Collective: every rank, same
  /// order.
  /// @throws WriteError  on every rank, if any rank could not write; nothing is left of it, and
  /// older ones stay
  void save(const CheckpointContent& content, const TrainingPosition& position, bool is_best);

  /// Tells a checkpoint that was saved in front of its evaluation, position.step's, what that
  /// brought: its manifest gets the position's best, and with `is_best`, or where no best is there,
  /// it becomes the best. Collective: every rank, same order.
  /// @throws WriteError  on every rank
  void mark_best(const TrainingPosition& position, bool is_best);

  /// Loads the newest checkpoint whose manifest verifies, and says so when a newer one did not.
  /// Empty if there is none. The world may have another size than the one that wrote it.
  /// Collective: every rank, same order.
  /// @throws ConfigError  if the run's identity differs from the checkpoint's
  std::optional<TrainingPosition> load(const CheckpointContent& content);

  /// Whether the folder holds any checkpoint. Local.
  bool empty() const;

  /// Whether one of them is marked as the best. Local.
  bool has_best() const;

 private:
  std::vector<std::string> names_newest_first() const;
  void publish(const std::filesystem::path& temporary, const std::string& name, bool is_best);
  void remove_old() const;

  std::filesystem::path folder_;
  int64_t num_kept_;
  dist::Communicator& communicator_;
};

}  // namespace t2r::launch
