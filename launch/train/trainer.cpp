#include "launch/train/trainer.h"

#include <algorithm>
#include <chrono>
#include <cmath>
#include <vector>

#include "base/error.h"
#include "base/seed.h"
#include "dist/agreement.h"
#include "launch/stop_signal.h"

namespace t2r::launch {
namespace {

using Clock = std::chrono::steady_clock;

data::BatchPlan batch_plan(const TrainConfig& config, const dist::Communicator& communicator) {
  const int64_t largest_share = (config.batch_size + communicator.size() - 1) / communicator.size();
  return {.global_batch = config.batch_size,
          .micro_batch = config.micro_batch_size > 0 ? config.micro_batch_size
                                                     : std::max<int64_t>(1, largest_share),
          .rank = communicator.rank(),
          .world = communicator.size()};
}

TrainingRunOptions run_options(const TrainConfig& config, const model::Trainable* teacher) {
  return {.optimizer = {config.beta1, config.beta2, config.eps, config.weight_decay},
          .loss = {.dropout = config.dropout,
                   .recompute = config.backend.recompute,
                   .teacher = teacher,
                   .teacher_share = config.distillation},
          .clip_norm = config.clip_norm,
          .bucket_mib = config.backend.bucket_mib};
}

PerplexityProtocol evaluation_protocol(const TrainConfig& config,
                                       const dist::Communicator& communicator) {
  const int64_t length = config.sequence_length;
  PerplexityProtocol protocol{
      .context = length, .scored = length, .max_tokens = config.eval_tokens};
  protocol.batch_size = std::min(protocol.batch_size, batch_plan(config, communicator).micro_batch);
  return protocol;
}

}  // namespace

Trainer::Trainer(const TrainConfig& config, TrainingInputs inputs, Backend& backend)
    : config_(config),
      inputs_(std::move(inputs)),
      communicator_(backend.communicator()),
      model_(*inputs_.model),
      run_(model_, backend, run_options(config, inputs_.teacher.get())),
      schedule_{config.schedule,
                config.learning_rate,
                config.final_lr_ratio,
                config.warmup_steps,
                config.total_steps() - config.transfer_steps},
      map_schedule_(schedule_),
      transfer_schedule_{LrShape::kCosine,
                         config.transfer_learning_rate,
                         0.0,
                         std::min<int64_t>(20, config.transfer_steps / 2),
                         config.transfer_steps},
      sampler_(
          inputs_.train.num_tokens(), config.sequence_length, static_cast<uint64_t>(config.seed)),
      checkpoints_(inputs_.output / "checkpoints", config.keep_checkpoints, communicator_),
      evaluator_(model_,
                 inputs_.valid,
                 {.every = config.eval_every,
                  .total_steps = config.total_steps(),
                  .protocol = evaluation_protocol(config, communicator_)},
                 communicator_) {
  if (config.map_learning_rate > 0.0) map_schedule_.peak = config.map_learning_rate;
  if (inputs_.teacher != nullptr) place_teacher(backend.placement());
  inputs_.format.dtypes.clear();  // checkpoints hold float32
  if (!config.model.empty()) initial_weights_ = model_.parameters().content_hash();
  const std::vector<FactDifference> changed = resume();
  loader_ =
      std::make_unique<data::Loader>(inputs_.train,
                                     sampler_,
                                     batch_plan(config, communicator_),
                                     data::LoaderOptions{.cursor = position_.sample_cursor,
                                                         .allocate = backend.batch_allocator()});
  records_ =
      std::make_unique<RunRecords>(RunRecords::Start{.folder = inputs_.output,
                                                     .config_text = inputs_.config_text,
                                                     .is_resumed = last_saved_step_ >= 0,
                                                     .is_evaluated_again = is_evaluation_due(),
                                                     .log_every = config.log_every},
                                   position_,
                                   communicator_);
  say_changed_options(changed);
}

void Trainer::place_teacher(const model::Placement& placement) {
  check_model_fits(inputs_.teacher->config(), placement);
  teacher_hash_ = inputs_.teacher->parameters().content_hash();
  dist::on_all_ranks(communicator_, [&] { inputs_.teacher->parameters().move_to(placement); });
}

Trainer::Outcome Trainer::run() {
  const int64_t total_steps = config_.total_steps();
  evaluate_start();
  while (position_.step < total_steps && !is_stop_requested_) {
    const StepMetrics metrics = train_step();
    records_->step(metrics);
    if (is_stop_requested_) break;  // to the save, before anything else: a second may be left
    check_skipped();
    if (is_save_due()) save();
    if (position_.step < total_steps && evaluator_.is_due(position_.step)) evaluate();
  }
  if (records_->progress() != nullptr) records_->progress()->finish();
  save();  // in front of the last evaluation, which may take long and may fail
  if (!is_stop_requested_ && last_evaluated_step_ != position_.step) evaluate();
  save();  // once more, if it could not be written: the disk may have room by now
  if (last_saved_step_ != position_.step)
    throw WriteError("the last checkpoint could not be written");
  const bool is_complete = position_.step == total_steps &&
                           (!evaluator_.has_data() || last_evaluated_step_ == total_steps);
  const char* link = is_complete && position_.best_step().has_value() ? "best" : "latest";
  records_->end(position_, inputs_.output / "checkpoints" / link, is_complete);
  return is_complete ? Outcome::kFinished : Outcome::kStopped;
}

void Trainer::check_skipped() {
  if (num_skipped_in_row_ <= config_.max_skipped_steps) return;
  save_before_failing();  // the updates until then may be good
  throw NumericError(
      concat("step ",
             position_.step,
             ": loss or gradients were not finite in ",
             num_skipped_in_row_,
             " steps in a row (max-skipped-steps = ",
             config_.max_skipped_steps,
             "); try a smaller learning-rate or a longer warm-up; --resume goes on from the "
             "newest in ",
             (inputs_.output / "checkpoints").string(),
             ": move out those that have diverged"));
}

StepMetrics Trainer::train_step() {
  const Clock::time_point start = Clock::now();
  const double waited_before = loader_->wait_seconds();
  const std::vector<data::Batch> batches = next_batches();
  const StepInputs inputs = step_inputs(batches);
  const StepTotals totals = run_.run_step(inputs);

  StepMetrics metrics{.step = position_.step + 1, .total_steps = config_.total_steps()};
  metrics.objective = &inputs.objective;
  metrics.is_skipped = totals.is_skipped;
  metrics.gradient_norm = totals.gradient_norm;
  metrics.learning_rate = inputs.objective.trains_maps_alone ? inputs.update.map_learning_rate
                                                             : inputs.update.learning_rate;
  if (totals.is_skipped) {
    ++num_skipped_in_row_;
    ++num_skipped_;
  } else {
    num_skipped_in_row_ = 0;
    position_.num_updates = inputs.update.number;
  }
  position_.step += 1;
  if (position_.step == config_.transfer_steps) start_finetuning();
  position_.sample_cursor += config_.batch_size;
  position_.num_tokens += totals.num_targets;
  is_stop_requested_ = totals.is_stop_requested;

  metrics.epoch =
      static_cast<double>(position_.sample_cursor) / static_cast<double>(sampler_.num_windows());
  metrics.loss = totals.loss_sum / static_cast<double>(totals.num_targets);
  metrics.loss_max_rank = totals.loss_max_rank;
  metrics.num_tokens = totals.num_targets;
  metrics.total_num_tokens = position_.num_tokens;
  metrics.remaining_evaluation_seconds = evaluator_.remaining_seconds(position_.step);
  metrics.num_skipped = num_skipped_;
  metrics.data_wait_seconds = loader_->wait_seconds() - waited_before;
  metrics.exposed_communication_seconds = totals.exposed_communication_seconds;
  metrics.seconds = std::chrono::duration<double>(Clock::now() - start).count();
  return metrics;
}

std::vector<data::Batch> Trainer::next_batches() {
  std::vector<data::Batch> batches;
  do {
    batches.push_back(loader_->next());
  } while (!batches.back().ends_step);
  return batches;
}

StepInputs Trainer::step_inputs(const std::vector<data::Batch>& batches) const {
  StepInputs inputs{.batches = batches,
                    .objective = objective(),
                    .is_stop_requested = stop_requested(),
                    .update = learning_rates()};
  // The dropout of a step depends on the step alone, so a resumed run needs no generator state.
  inputs.dropout_seed = derive_seed(
      static_cast<uint64_t>(config_.seed),
      SeedStream::kDropout,
      {static_cast<uint64_t>(position_.step), static_cast<uint64_t>(communicator_.rank())});
  inputs.update.number = position_.num_updates + 1;
  return inputs;
}

const model::Objective& Trainer::objective() const {
  if (position_.step < config_.transfer_steps) return model::kTransfer;
  return inputs_.teacher != nullptr ? model::kDistillation : model::kText;
}

// Finetuning starts with a fresh optimizer.
void Trainer::start_finetuning() {
  run_.optimizer().reset();
  position_.num_updates = 0;
}

model::AdamW::Step Trainer::learning_rates() const {
  const int64_t step = position_.step + 1;
  if (objective().trains_maps_alone) return {.map_learning_rate = transfer_schedule_.rate(step)};
  const int64_t finetuning_step = step - config_.transfer_steps;
  return {.learning_rate = schedule_.rate(finetuning_step),
          .map_learning_rate = map_schedule_.rate(finetuning_step)};
}

// Whether this start evaluates the step that it begins at.
bool Trainer::is_evaluation_due() const {
  if (position_.step == 0) return config_.eval_at_start && evaluator_.has_data();
  return evaluator_.is_due(position_.step) && last_evaluated_step_ != position_.step;
}

// The score of a model that nothing has been done to is something to compare with, never the best;
// a resumed run makes up for the evaluation that it was stopped in.
void Trainer::evaluate_start() {
  if (!is_evaluation_due() || position_.step == config_.total_steps()) return;
  if (position_.step == 0) {
    const PerplexityResult result = score();
    if (!is_stop_requested_)
      records_->evaluation(position_, result, evaluator_.seconds(), /*is_best=*/false);
  } else {
    evaluate();
  }
}

void Trainer::evaluate() {
  if (!evaluator_.has_data()) return;
  const PerplexityResult result = score();
  if (is_stop_requested_) return;
  last_evaluated_step_ = position_.step;
  const double loss = result.loss();
  const bool is_best =
      std::isfinite(loss) && (!best_evaluated_loss_.has_value() || loss < *best_evaluated_loss_);
  if (is_best) best_evaluated_loss_ = loss;
  // In front of the checkpoint: after a kill in between it is evaluated again, and not forgotten.
  records_->evaluation(position_, result, evaluator_.seconds(), is_best);
  note_evaluation(loss);
  if (is_best && last_saved_step_ != position_.step && saves_on_the_way()) save();
}

PerplexityResult Trainer::score() {
  try {
    const PerplexityResult result = evaluator_.score(position_.step, records_->progress());
    is_stop_requested_ = result.is_stopped;
    return result;
  } catch (const Error&) {  // the same on every rank; what was trained is not lost with it
    save_before_failing();
    throw;
  }
}

}  // namespace t2r::launch
