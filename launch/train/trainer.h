#pragma once

#include <chrono>
#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "data/corpus.h"
#include "data/loader.h"
#include "data/sampler.h"
#include "launch/backend.h"
#include "launch/checkpoints/checkpoint.h"
#include "launch/model_files.h"
#include "launch/train/evaluator.h"
#include "launch/train/lr_schedule.h"
#include "launch/train/run_records.h"
#include "launch/train/train_config.h"
#include "launch/train/training_run.h"
#include "model/files/hugging_face.h"

namespace t2r::launch {

/// What a run trains and where it writes; made by `t2r train`.
struct TrainingInputs {
  std::unique_ptr<model::Trainable> model;
  model::SourceFormat format = {};                 ///< of what checkpoints hold
  std::unique_ptr<model::Trainable> teacher = {};  ///< nullptr: the text alone teaches
  const data::Corpus& train;
  const data::Corpus* valid = nullptr;  ///< nullptr: no evaluation
  std::filesystem::path output;
  std::string config_text = {};           ///< what config.toml will hold
  std::vector<CompanionFile> companions;  ///< of the model: the tokenizer's files
};

/// Data-parallel training: the only place that knows model, data and ranks.
class Trainer {
 public:
  /// Broadcasts rank 0's parameters. Collective: every rank, same order.
  Trainer(const TrainConfig& config, TrainingInputs inputs, Backend& backend);

  enum class Outcome { kFinished, kStopped };

  /// Trains to the last step, or to a stop signal; a checkpoint is written either way, in front of
  /// the last evaluation. kFinished: the last step is saved and evaluated, nothing is left to do.
  /// Collective: every rank, same order.
  /// @throws NumericError  after max_skipped_steps steps in a row that were not finite
  /// @throws WriteError    after max_failed_saves checkpoints in a row that could not be written
  Outcome run();

 private:
  StepMetrics train_step();
  std::vector<data::Batch> next_batches();
  StepInputs step_inputs(const std::vector<data::Batch>& batches) const;
  void start_finetuning();
  const model::Objective& objective() const;
  model::AdamW::Step learning_rates() const;
  void place_teacher(const model::Placement& placement);
  void check_skipped();
  void evaluate();
  void evaluate_start();
  bool is_evaluation_due() const;
  PerplexityResult score();
  void note_evaluation(double loss);
  bool is_save_due();
  bool is_time_to_save();
  bool saves_on_the_way() const {
    return config_.checkpoint_every > 0 || config_.checkpoint_minutes > 0.0;
  }
  void save();
  /// The same in front of a failure, which is what the run ends with whatever becomes of this.
  void save_before_failing();
  CheckpointContent checkpoint_content();
  std::vector<FactDifference> resume();
  void check_steps_left() const;
  void say_changed_options(const std::vector<FactDifference>& changed);

  TrainConfig config_;
  TrainingInputs inputs_;
  dist::Communicator& communicator_;
  model::Trainable& model_;
  TrainingRun run_;
  LrSchedule schedule_, map_schedule_, transfer_schedule_;
  std::string teacher_hash_;
  std::string initial_weights_;  ///< hash of what finetuning began from; empty: [model]
  data::Sampler sampler_;
  CheckpointStore checkpoints_;
  std::unique_ptr<data::Loader> loader_;
  Evaluator evaluator_;
  std::unique_ptr<RunRecords> records_;

  TrainingPosition position_;
  bool is_stop_requested_ = false;
  bool is_save_waiting_ = false;
  std::optional<double> best_evaluated_loss_ = {};  ///< saved or not
  int64_t num_skipped_ = 0, num_skipped_in_row_ = 0, num_failed_saves_ = 0;
  int64_t last_saved_step_ = -1, last_evaluated_step_ = -1;
  std::chrono::steady_clock::time_point last_save_time_ = std::chrono::steady_clock::now();
};

}  // namespace t2r::launch
