#include "launch/train/train_config.h"

#include <algorithm>

#include "base/error.h"
#include "base/text.h"
#include "launch/options/option_value.h"
#include "model/families/families.h"

namespace t2r::launch {
namespace {

void check(bool holds, const char* key, const std::string& value, const std::string& allowed) {
  if (!holds) throw ConfigError(not_allowed(key, value, allowed));
}

// Sizes of a model's table: products of two, and of three small ones, fit 63 bits.
constexpr int64_t kLargestSize = int64_t{1} << 24;
constexpr int64_t kMostLayers = 10000;
constexpr double kLargestRate = 100.0;
constexpr double kLargestBeta = 0.9999999;  // moments must forget
constexpr double kLeastClipNorm = 1e-30;

}  // namespace

model::DecoderConfig NewModelConfig::resolve(int64_t vocab_size, int64_t sequence_length) const {
  model::DecoderConfig config = model::config_of(family, num_layers);
  config.vocab_size = vocab_size;
  config.hidden_size = hidden_size;
  config.num_heads = num_heads;
  config.num_kv_heads = num_kv_heads > 0 ? num_kv_heads : num_heads;
  check(num_kv_heads <= num_heads,
        "model.kv-heads",
        std::to_string(num_kv_heads),
        concat("0 to model.heads = ", num_heads));
  check(hidden_size % num_heads == 0,
        "model.hidden-size",
        std::to_string(hidden_size),
        concat("a multiple of model.heads = ", num_heads));
  check(config.block.has_free_heads || config.num_kv_heads == num_heads,
        "model.kv-heads",
        std::to_string(num_kv_heads),
        concat("0 for ", family));
  config.head_dim = hidden_size / num_heads;
  const int64_t gated = (hidden_size * 8 / 3 + 31) / 32 * 32;
  config.intermediate_size = intermediate_size > 0        ? intermediate_size
                             : config.block.has_gated_mlp ? gated
                                                          : 4 * hidden_size;
  config.max_positions = max_positions > 0 ? max_positions : sequence_length;
  config.tied_embeddings = tied_embeddings;
  if (attention != "softmax") {
    check(attention != "elu" || feature_size == 0 || feature_size == config.head_dim,
          "model.feature-size",
          std::to_string(feature_size),
          concat("0 or the head dimension, ", config.head_dim, ", for elu"));
    config.linear = model::LinearAttentionConfig{
        .feature_map = attention,
        .feature_size = attention == "elu" || feature_size == 0
                            ? model::default_feature_size(attention, config.head_dim)
                            : feature_size,
        .softmax_layers = model::kept_softmax_layers(
            softmax_layers,
            num_layers,
            concat("none is left for model.attention = \"",
                   attention,
                   "\"; name fewer in model.softmax-layers, or give model.attention = softmax"))};
  }
  config.validate();
  return config;
}

void NewModelConfig::bind(OptionSet& options) {
  options.add_choice("model.family", family, model::family_names(), "family");
  options.add("model.layers", num_layers, "blocks").range(0, kMostLayers);
  options.add("model.hidden-size", hidden_size, "width").range(1, kLargestSize);
  options.add("model.heads", num_heads, "attention heads").range(1, kLargestSize);
  options.add("model.kv-heads", num_kv_heads, "key/value heads; 0: as many as heads")
      .range(0, kLargestSize);
  options.add("model.intermediate-size", intermediate_size, "feed-forward width; 0: the family's")
      .range(0, kLargestSize);
  options.add("model.max-positions", max_positions, "longest context; 0: sequence-length")
      .range(0, kLargestSize);
  options.add("model.tied-embeddings", tied_embeddings, "output shares the token embedding");
  std::vector<std::string> kinds{"softmax"};
  kinds.insert(kinds.end(), model::feature_map_names().begin(), model::feature_map_names().end());
  options.add_choice(
      "model.attention", attention, kinds, "softmax, or the map of linear attention");
  options
      .add(
          "model.feature-size",
          feature_size,
          "features per head (t2r, hedgehog); 0: 32 for t2r, twice the head dimension for hedgehog")
      .range(0, kLargestSize);
  options.add("model.softmax-layers", softmax_layers, "layers that keep softmax")
      .range(0, kMostLayers - 1);
}

void TrainConfig::bind(OptionSet& options) {
  options.add("output", output, "run folder: checkpoints, metrics.jsonl, config.toml").required();
  options.add(
      "model", model, "Hugging Face folder to finetune; without it a [model] table is pretrained");
  options.add(
      "tokenizer", tokenizer, "tokenizer to keep with the model [default: the model folder's]");
  bind_data(options);
  bind_optimizer(options);
  bind_stages(options);
  backend.bind(options, /*trains=*/true);
  bind_evaluation(options);
  bind_checkpoints(options);
  new_model.bind(options);
}

void TrainConfig::bind_data(OptionSet& options) {
  options.add("train-data", train_data, "shards (files or folders) of `t2r prepare lm`");
  options.add("valid-data", valid_data, "shards for evaluation");
  BatchOptions::bind(options);
  options.add("steps", steps, "optimizer steps").at_least(0).said_on_resume([this] {
    return std::to_string(total_steps());
  });
  options.add("tokens", tokens, "budget in tokens instead of steps").at_least(0);
  options.add("seed", seed, "of initialisation, data order and dropout").at_least(0).identity();
}

void TrainConfig::bind_optimizer(OptionSet& options) {
  options.add("learning-rate", learning_rate, "peak").range(0.0, kLargestRate).said_on_resume();
  options.add("map-learning-rate", map_learning_rate, "peak for feature maps; 0: learning-rate")
      .range(0.0, kLargestRate)
      .said_on_resume();
  options.add("transfer-learning-rate", transfer_learning_rate, "peak of the transfer steps")
      .range(0.0, kLargestRate)
      .said_on_resume();
  options.add("schedule", schedule, "after the warm-up").said_on_resume();
  options.add("warmup-steps", warmup_steps, "linear warm-up").at_least(0).said_on_resume();
  options.add("final-lr-ratio", final_lr_ratio, "last rate over the peak (cosine, linear)")
      .range(0.0, 1.0)
      .said_on_resume();
  options.add("beta1", beta1, "AdamW").range(0.0, kLargestBeta).said_on_resume();
  options.add("beta2", beta2, "AdamW").range(0.0, kLargestBeta).said_on_resume();
  options.add("eps", eps, "AdamW").range(1e-30, 1.0).said_on_resume();
  options.add("weight-decay", weight_decay, "AdamW, on matrices only")
      .range(0.0, 100.0)
      .said_on_resume();
  options.add("clip-norm", clip_norm, "global gradient norm; 0: no clipping")
      .range(0.0, 1e9)
      .said_on_resume();
  options.add("dropout", dropout, "on embeddings and residual branches")
      .range(0.0, 0.99)
      .said_on_resume();
}

void TrainConfig::bind_stages(OptionSet& options) {
  options
      .add("transfer-steps",
           transfer_steps,
           "first steps that train the feature maps alone, to give what softmax attention gives "
           "(finetuning)")
      .at_least(0)
      .identity();
  options.add("teacher",
              teacher,
              "Hugging Face folder of a model whose next-token distributions are learned as well, "
              "with the same vocabulary (distillation)");
  options
      .add("distillation",
           distillation,
           "share of the loss that is the divergence from the teacher; the rest is the text's")
      .range(0.0, 1.0);
}

void TrainConfig::bind_evaluation(OptionSet& options) {
  options.add("eval-every", eval_every, "steps between evaluations; 0: at the end only")
      .at_least(0);
  options.add("eval-tokens", eval_tokens, "tokens per evaluation; 0: all")
      .at_least(0)
      .said_on_resume();
  options.add(
      "eval-at-start", eval_at_start, "evaluate the untouched model as step 0, to compare with");
}

void TrainConfig::bind_checkpoints(OptionSet& options) {
  options.add("checkpoint-every", checkpoint_every, "steps between checkpoints; 0: at the end only")
      .at_least(0);
  options
      .add_minutes(
          "checkpoint-minutes",
          checkpoint_minutes,
          "time between checkpoints (30m, 2h), beside checkpoint-every; 0: steps alone decide")
      .range(0.0, 1e6);
  options.add("keep-checkpoints", keep_checkpoints, "newest ones to keep, besides the best")
      .at_least(2);
  options
      .add("max-failed-saves",
           max_failed_saves,
           "checkpoints in a row that may fail before the run stops")
      .at_least(1);
  options
      .add("max-skipped-steps",
           max_skipped_steps,
           "steps in a row with gradients that are not finite before the run stops")
      .at_least(0);
  options.add("log-every", log_every, "steps between log lines").at_least(1);
  options.add("resume", resume, "continue from the newest checkpoint in --output, if there is one");
}

void TrainConfig::validate() const {
  if (model.empty() == (new_model.num_layers == 0)) {
    throw ConfigError(
        model.empty()
            ? "nothing to train: give --model FOLDER (finetune) or [model] layers (pretrain)"
            : "--model and [model] exclude each other: finetune or pretrain");
  }
  if (train_data.empty())
    throw ConfigError("train-data is empty; make shards with `t2r prepare lm`");
  if ((steps > 0) == (tokens > 0)) throw ConfigError("give exactly one of steps and tokens");
  const int64_t step_tokens =
      checked_product("batch-size x sequence-length", {batch_size, sequence_length});
  check(total_steps() > 0,
        "tokens",
        std::to_string(tokens),
        concat(step_tokens, " (one step) or more"));
  checked_product("steps x batch-size x sequence-length", {total_steps(), step_tokens});
  check(transfer_steps < total_steps(),
        "transfer-steps",
        std::to_string(transfer_steps),
        concat("0 to ", total_steps() - 1, " (steps - 1)"));
  check(transfer_steps == 0 || !model.empty(),
        "transfer-steps",
        std::to_string(transfer_steps),
        "0 when pretraining");
  check(!teacher.empty() || distillation == 1.0,
        "distillation",
        number_text(distillation),
        "1 without a teacher");
  // Below, what is left of a gradient is nothing in float32.
  if (clip_norm != 0.0 && clip_norm < kLeastClipNorm)
    throw ConfigError(concat("clip-norm = ",
                             number_text(clip_norm),
                             ", allowed: 0 (no clipping), or ",
                             number_text(kLeastClipNorm),
                             " to 1e+09"));
}

int64_t TrainConfig::total_steps() const {
  return steps > 0 ? steps : tokens / (batch_size * sequence_length);
}

RunFacts TrainConfig::facts(OnResume kind) const {
  TrainConfig copy = *this;  // an OptionSet binds variables
  OptionSet options("train", "");
  copy.bind(options);
  return options.facts(kind);
}

}  // namespace t2r::launch
