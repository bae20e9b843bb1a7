#include "launch/cli/idle_options.h"

#include <algorithm>

#include "base/error.h"
#include "base/log.h"
#include "base/text.h"
#include "launch/train/lr_schedule.h"

namespace t2r::launch {
namespace {

bool has_trained_maps(const model::DecoderConfig& model) {
  if (!model.linear.has_value() || model.linear->feature_map == "elu") return false;
  return static_cast<int64_t>(model.linear->softmax_layers.size()) < model.num_layers;
}

// The schedule is the part behind the transfer steps.
void say_idle_schedule(const OptionSet& options, const TrainConfig& config) {
  const int64_t steps = config.total_steps() - config.transfer_steps;
  const bool has_last_rate =
      config.schedule == LrShape::kCosine || config.schedule == LrShape::kLinear;
  options.say_if_idle(
      "final-lr-ratio",
      !has_last_rate,
      concat("schedule = ", name_of(config.schedule), " has no last rate (cosine, linear)"));
  if (config.warmup_steps <= steps) {
    options.say_if_idle(
        "final-lr-ratio", config.warmup_steps == steps, "the warm-up takes all steps of the run");
    return;
  }
  const double reached = static_cast<double>(steps) / static_cast<double>(config.warmup_steps);
  log::warning_of_first_rank(concat("--warmup-steps = ",
                                    config.warmup_steps,
                                    " is longer than the run's ",
                                    steps,
                                    " steps: the rate ends at ",
                                    config.learning_rate * reached,
                                    ", and --schedule has no effect"));
}

void say_idle_intervals(const OptionSet& options, const TrainConfig& config) {
  const int64_t steps = config.total_steps();
  const bool has_valid = !config.valid_data.empty();
  for (const char* key : {"eval-every", "eval-tokens", "eval-at-start"})
    options.say_if_idle(key, !has_valid, "there is no --valid-data");
  const std::string too_long =
      concat("the run has ", steps, " steps; there is only the one at its end");
  options.say_if_idle("eval-every", config.eval_every > steps, too_long);
  options.say_if_idle("checkpoint-every", config.checkpoint_every > steps, too_long);
  options.say_if_idle("keep-checkpoints",
                      config.checkpoint_every == 0 && config.checkpoint_minutes == 0.0,
                      "without --checkpoint-every and --checkpoint-minutes there is only the one "
                      "at the run's end, and the best");
}

}  // namespace

void say_idle_backend_options(const OptionSet& options,
                              const BackendOptions& backend,
                              int64_t num_ranks) {
  const bool is_on_cpu = backend.device == Device::kCpu;
  const auto say = [&](const char* key, bool is_idle, const char* why) {
    if (options.has(key)) options.say_if_idle(key, is_idle, why);
  };
  say("deterministic", is_on_cpu, "a run on a CPU repeats bit for bit as it is");
  say("cuda-graph", is_on_cpu, "there are CUDA graphs on a GPU alone");
  say("threads", !is_on_cpu, "the GPU computes");
  say("bucket-mib", num_ranks == 1, "one rank has no gradients to sum");
}

void say_idle_model_table(const OptionSet& options, const NewModelConfig& table) {
  const bool is_softmax = table.attention == "softmax";
  for (const char* key : {"model.feature-size", "model.softmax-layers"})
    options.say_if_idle(key, is_softmax, "model.attention = softmax has no feature map");
}

void say_idle_train_options(const OptionSet& options,
                            const TrainConfig& config,
                            const model::DecoderConfig& model,
                            int64_t num_ranks) {
  say_idle_backend_options(options, config.backend, num_ranks);
  if (config.model.empty()) say_idle_model_table(options, config.new_model);
  say_idle_schedule(options, config);
  say_idle_intervals(options, config);
  const bool has_maps = has_trained_maps(model);
  if (config.transfer_steps > 0 && !has_maps) {
    throw ConfigError(not_allowed("transfer-steps",
                                  std::to_string(config.transfer_steps),
                                  "0; it has no feature maps to train (t2r convert --feature-map "
                                  "t2r or hedgehog gives it some)",
                                  "with this model"));
  }
  options.say_if_idle("map-learning-rate", !has_maps, "the model has no feature maps to train");
  options.say_if_idle(
      "transfer-learning-rate", config.transfer_steps == 0, "there are no --transfer-steps");
  options.say_if_idle("distillation", config.teacher.empty(), "there is no --teacher");
  options.say_if_idle("teacher",
                      config.distillation == 0.0,
                      "distillation = 0 leaves it no share of the loss; it costs time alone");
  if (config.clip_norm > 0.0 && config.clip_norm < config.eps)
    log::warning_of_first_rank(concat("--clip-norm = ",
                                      number_text(config.clip_norm),
                                      " is below --eps = ",
                                      number_text(config.eps),
                                      ": what AdamW divides by is never less than eps, so steps "
                                      "are much smaller than the learning rate"));
  if (config.learning_rate == 0.0 && (config.map_learning_rate == 0.0 || !has_maps))
    log::warning_of_first_rank("--learning-rate = 0: the run changes no parameter");
  const int64_t share = (config.batch_size + num_ranks - 1) / num_ranks;
  options.say_if_idle("micro-batch-size",
                      config.micro_batch_size > share,
                      concat("a rank's share of the batch is ", share, " sequence(s)"));
  if (config.tokens > 0) {
    const int64_t trained = config.total_steps() * config.batch_size * config.sequence_length;
    if (trained != config.tokens) {
      log::warning_of_first_rank(concat("--tokens = ",
                                        config.tokens,
                                        " is rounded down to ",
                                        trained,
                                        ": ",
                                        config.total_steps(),
                                        " whole steps"));
    }
  }
}

void check_length(const char* key,
                  int64_t length,
                  const model::Trainable& model,
                  const char* role) {
  if (length > model.num_positions()) {
    throw ConfigError(not_allowed(key,
                                  std::to_string(length),
                                  concat("1 to ", model.num_positions(), ", its learned positions"),
                                  concat("with this ", role)));
  }
  const int64_t trained = model.config().max_positions;
  if (length <= trained) return;
  log::warning_of_first_rank(concat("--",
                                    key,
                                    " = ",
                                    length,
                                    " is beyond the ",
                                    trained,
                                    " positions that the ",
                                    role,
                                    "'s config.json says it was trained on"));
}

}  // namespace t2r::launch
