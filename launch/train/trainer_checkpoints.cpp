// What a run saves, when, and what it goes on from.
#include <ATen/Parallel.h>

#include <chrono>
#include <optional>
#include <utility>
#include <vector>

#include "base/error.h"
#include "base/log.h"
#include "base/text.h"
#include "dist/parameter_sync.h"
#include "launch/train/trainer.h"

namespace t2r::launch {

using Clock = std::chrono::steady_clock;

// A checkpoint that is there already learns of it.
void Trainer::note_evaluation(double loss) {
  const TrainingPosition before = position_;
  position_.evaluated = {position_.step, loss};
  if (last_saved_step_ != position_.step) return;
  position_ = position_.as_saved();
  if (position_ == before) return;  // evaluated again
  const auto warn = [](const Error& error) {
    log::warning_of_first_rank(
        concat("the evaluation is not noted in its checkpoint: ", error.what()));
  };
  try {
    checkpoints_.update(checkpoint_content(), position_);
  } catch (const WriteError& error) {
    warn(error);
  } catch (const DataError& error) {  // its manifest is damaged, or cannot be read now
    warn(error);
  }
}

CheckpointContent Trainer::checkpoint_content() {
  RunFacts identity = config_.facts(OnResume::kEqual);
  identity.emplace_back("train-data", inputs_.train.content_hash());
  identity.emplace_back("model-weights",
                        initial_weights_.empty() ? "[model] from the seed" : initial_weights_);
  if (inputs_.teacher != nullptr) {
    identity.emplace_back("teacher", teacher_hash_);
    identity.emplace_back("distillation", number_text(config_.distillation));
  }
  RunFacts options = config_.facts(OnResume::kSaid);
  options.emplace_back("tokenizer", inputs_.train.tokenizer_hash());  // read by tokenizer_check
  if (inputs_.valid != nullptr) options.emplace_back("valid-data", inputs_.valid->content_hash());
  // Sums are cut differently by another number of threads: their last bits depend on it.
  if (model_.device().is_cpu()) options.emplace_back("threads", concat(at::get_num_threads()));
  return {.model = model_,
          .format = inputs_.format,
          .optimizer = run_.optimizer(),
          .identity = std::move(identity),
          .options = std::move(options),
          .companions = inputs_.companions,
          .keeps_older = num_skipped_in_row_ > 0};
}

// What may be diverging pushes no checkpoint out: a save waits for a step that was not skipped, and
// nothing is lost by that, since skipped ones change nothing.
bool Trainer::is_save_due() {
  is_save_waiting_ = is_save_waiting_ || is_time_to_save();
  return is_save_waiting_ && num_skipped_in_row_ == 0;
}

// Minutes are counted by rank 0's clock; the others hear what it says.
bool Trainer::is_time_to_save() {
  if (config_.checkpoint_every > 0 && position_.step % config_.checkpoint_every == 0) return true;
  if (config_.checkpoint_minutes <= 0.0) return false;
  const double minutes = std::chrono::duration<double>(Clock::now() - last_save_time_).count() / 60;
  torch::Tensor is_due = torch::tensor({int64_t{minutes >= config_.checkpoint_minutes}});
  communicator_.broadcast(is_due, 0);
  return is_due.item<int64_t>() != 0;
}

void Trainer::save() {
  if (last_saved_step_ == position_.step) return;
  last_save_time_ = Clock::now();
  is_save_waiting_ = false;
  dist::check_replicas_equal(communicator_, run_.arena().masters(), "parameters");
  const TrainingPosition position = position_.as_saved();
  try {
    checkpoints_.save(checkpoint_content(), position);
  } catch (const WriteError& error) {
    ++num_failed_saves_;
    log::warning_of_first_rank(concat(error.what(),
                                      " (",
                                      num_failed_saves_,
                                      " in a row; the run stops after ",
                                      config_.max_failed_saves,
                                      ")"));
    if (num_failed_saves_ >= config_.max_failed_saves) throw;
    return;
  }
  position_ = position;
  num_failed_saves_ = 0;
  last_saved_step_ = position_.step;
  records_->checkpoint(std::chrono::duration<double>(Clock::now() - last_save_time_).count());
}

void Trainer::save_before_failing() {
  try {
    save();
  } catch (const WriteError&) {  // it is said, and not why the run ends
  } catch (const Error& error) {
    log::warning_of_first_rank(error.what());
  }
}

// Which options differ from those of the run that is resumed.
std::vector<FactDifference> Trainer::resume() {
  if (!checkpoints_.empty() && !config_.resume) {
    throw ConfigError(
        concat(inputs_.output.string(),
               " holds a run already; continue it with --resume, or choose another --output"));
  }
  std::vector<FactDifference> changed;
  const CheckpointContent content = checkpoint_content();
  const std::optional<ResumedRun> found = checkpoints_.load(content);
  if (found.has_value()) {
    run_.arena().round_masters();
    position_ = found->position;
    check_steps_left();
    last_saved_step_ = position_.step;
    // The last evaluation is taken again: every start that ends says what was reached.
    if (position_.evaluated.has_value() && position_.step < config_.total_steps())
      last_evaluated_step_ = position_.evaluated->step;
    if (position_.best.has_value()) best_evaluated_loss_ = position_.best->loss;
    changed = found->changed_options;
  } else if (config_.resume) {
    log::warning_of_first_rank(concat("--resume has no effect: ",
                                      (inputs_.output / "checkpoints").string(),
                                      " has no checkpoint; the run begins at step 1"));
  }
  const int64_t num_steps_left = config_.total_steps() - position_.step;
  const int64_t num_saves = config_.checkpoint_minutes > 0.0 ? num_steps_left
                            : config_.checkpoint_every > 0
                                ? num_steps_left / config_.checkpoint_every
                                : 0;
  checkpoints_.warn_if_disk_is_small(content, num_saves + 1);
  return changed;
}

// A run cannot end at a step that it is past: it would ask to be started again for ever.
void Trainer::check_steps_left() const {
  if (position_.step <= config_.total_steps()) return;
  const int64_t unit = config_.steps > 0 ? 1 : config_.batch_size * config_.sequence_length;
  throw ConfigError(
      concat(config_.steps > 0 ? "steps = " : "tokens = ",
             config_.steps > 0 ? config_.steps : config_.tokens,
             ", allowed: ",
             position_.step * unit,
             " or more, which ",
             inputs_.output.string(),
             " has already; an older checkpoint can be had by its name in checkpoints"));
}

void Trainer::say_changed_options(const std::vector<FactDifference>& changed) {
  if (changed.empty() || communicator_.rank() != 0) return;
  const std::string text = text_of(changed, "before");
  log::warning("resumed with other options than before: " + text);
  records_->metrics()->event("changed_options", {{"changes", text}});
}

}  // namespace t2r::launch
