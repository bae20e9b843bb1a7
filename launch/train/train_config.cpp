#include "launch/train/train_config.h"

#include <algorithm>

#include "base/error.h"
#include "base/text.h"
#include "launch/options/option_value.h"

namespace t2r::launch {
namespace {

void check(bool holds, const char* key, const std::string& value, const std::string& allowed) {
  if (!holds) throw ConfigError(concat(key, " = ", value, ", allowed: ", allowed));
}

// Sizes of a model's table: products of two, and of three small ones, fit 63 bits.
constexpr int64_t kLargestSize = int64_t{1} << 24;
constexpr int64_t kMostLayers = 10000;

}  // namespace

model::DecoderConfig NewModelConfig::resolve(int64_t vocab_size, int64_t sequence_length) const {
  validate();
  model::DecoderConfig config;
  const bool is_gpt2 = family == "gpt2";
  config.family = is_gpt2 ? model::Family::kGpt2 : model::Family::kLlama;
  config.vocab_size = vocab_size;
  config.hidden_size = hidden_size;
  config.num_layers = num_layers;
  config.num_heads = num_heads;
  config.num_kv_heads = num_kv_heads > 0 ? num_kv_heads : num_heads;
  check(num_heads > 0 && hidden_size % num_heads == 0,
        "model.hidden-size",
        std::to_string(hidden_size),
        concat("a multiple of model.heads = ", num_heads));
  check(!is_gpt2 || config.num_kv_heads == num_heads,
        "model.kv-heads",
        std::to_string(num_kv_heads),
        "0 for gpt2");
  config.head_dim = hidden_size / num_heads;
  const int64_t gated = (hidden_size * 8 / 3 + 31) / 32 * 32;
  config.intermediate_size = intermediate_size > 0 ? intermediate_size
                             : is_gpt2             ? 4 * hidden_size
                                                   : gated;
  config.max_positions = max_positions > 0 ? max_positions : sequence_length;
  config.activation = is_gpt2 ? model::Activation::kGeluTanh : model::Activation::kSilu;
  config.tied_embeddings = tied_embeddings;
  config.attention_bias = is_gpt2;
  config.mlp_bias = is_gpt2;
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
        .softmax_layers = softmax_layers};
    std::vector<int64_t>& kept = config.linear->softmax_layers;
    std::sort(kept.begin(), kept.end());
    kept.erase(std::unique(kept.begin(), kept.end()), kept.end());
  }
  config.validate();
  return config;
}

void NewModelConfig::validate() const {
  check_within("model.layers", num_layers, 0, kMostLayers);
  check_within("model.hidden-size", hidden_size, 1, kLargestSize);
  check_within("model.heads", num_heads, 1, kLargestSize);
  check_within("model.kv-heads", num_kv_heads, 0, num_heads);
  check_within("model.intermediate-size", intermediate_size, 0, kLargestSize);
  check_within("model.max-positions", max_positions, 0, kLargestSize);
  check_within("model.feature-size", feature_size, 0, kLargestSize);
}

void NewModelConfig::bind(OptionSet& options) {
  options.add_choice("model.family", family, {"llama", "gpt2"}, "family");
  options.add("model.layers", num_layers, "blocks");
  options.add("model.hidden-size", hidden_size, "width");
  options.add("model.heads", num_heads, "attention heads");
  options.add("model.kv-heads", num_kv_heads, "key/value heads; 0: as many as heads");
  options.add("model.intermediate-size", intermediate_size, "feed-forward width; 0: the family's");
  options.add("model.max-positions", max_positions, "longest context; 0: sequence-length");
  options.add("model.tied-embeddings", tied_embeddings, "output shares the token embedding");
  std::vector<std::string> kinds{"softmax"};
  kinds.insert(kinds.end(), model::feature_map_names().begin(), model::feature_map_names().end());
  options.add_choice(
      "model.attention", attention, kinds, "softmax, or the map of linear attention");
  options.add(
      "model.feature-size",
      feature_size,
      "features per head (t2r, hedgehog); 0: 32 for t2r, twice the head dimension for hedgehog");
  options.add("model.softmax-layers", softmax_layers, "layers that keep softmax");
}

void TrainConfig::bind(OptionSet& options) {
  options.add_required("output", output, "run folder: checkpoints, metrics.jsonl, config.toml");
  options.add(
      "model", model, "Hugging Face folder to finetune; without it a [model] table is pretrained");
  options.add(
      "tokenizer", tokenizer, "tokenizer to keep with the model [default: the model folder's]");
  options.add("train-data", train_data, "shards (files or folders) of `t2r prepare lm`");
  options.add("valid-data", valid_data, "shards for evaluation");
  options.add("sequence-length", sequence_length, "tokens per sequence");
  options.add("batch-size", batch_size, "sequences per step, over all ranks");
  options.add(
      "micro-batch-size", micro_batch_size, "sequences at once on a rank; 0: its whole share");
  options.add("steps", steps, "optimizer steps");
  options.add("tokens", tokens, "budget in tokens instead of steps");
  options.add("seed", seed, "of initialisation, data order and dropout");
  options.add("learning-rate", learning_rate, "peak");
  options.add("map-learning-rate", map_learning_rate, "peak for feature maps; 0: learning-rate");
  options.add("transfer-steps",
              transfer_steps,
              "first steps that train the feature maps alone, to give what softmax attention gives "
              "(finetuning)");
  options.add("transfer-learning-rate", transfer_learning_rate, "peak of the transfer steps");
  options.add("teacher",
              teacher,
              "Hugging Face folder of a model whose next-token distributions are learned as well, "
              "with the same vocabulary (distillation)");
  options.add("distillation",
              distillation,
              "share of the loss that is the divergence from the teacher; the rest is the text's");
  options.add_choice(
      "schedule", schedule, {"cosine", "linear", "inverse-sqrt", "constant"}, "after the warm-up");
  options.add("warmup-steps", warmup_steps, "linear warm-up");
  options.add("final-lr-ratio", final_lr_ratio, "last rate over the peak (cosine, linear)");
  options.add("beta1", beta1, "AdamW");
  options.add("beta2", beta2, "AdamW");
  options.add("eps", eps, "AdamW");
  options.add("weight-decay", weight_decay, "AdamW, on matrices only");
  options.add("clip-norm", clip_norm, "global gradient norm; 0: no clipping");
  options.add("dropout", dropout, "on embeddings and residual branches");
  options.add("eval-every", eval_every, "steps between evaluations; 0: at the end only");
  options.add("eval-tokens", eval_tokens, "tokens per evaluation; 0: all");
  options.add(
      "eval-at-start", eval_at_start, "evaluate the untouched model as step 0, to compare with");
  options.add(
      "checkpoint-every", checkpoint_every, "steps between checkpoints; 0: at the end only");
  options.add_minutes(
      "checkpoint-minutes",
      checkpoint_minutes,
      "time between checkpoints (30m, 2h), beside checkpoint-every; 0: steps alone decide");
  options.add("keep-checkpoints", keep_checkpoints, "newest ones to keep, besides the best");
  options.add("max-failed-saves",
              max_failed_saves,
              "checkpoints in a row that may fail before the run stops");
  options.add("max-skipped-steps",
              max_skipped_steps,
              "steps in a row with gradients that are not finite before the run stops");
  options.add("log-every", log_every, "steps between log lines");
  options.add("resume", resume, "continue from the newest checkpoint in --output, if there is one");
  options.add(
      "threads",
      threads,
      "per rank; 0: its share of the processors, or fewer where a step is too small for them");
  backend.bind(options, /*trains=*/true);
  new_model.bind(options);
}

void TrainConfig::validate() const {
  if (model.empty() == (new_model.num_layers == 0)) {
    throw ConfigError(
        model.empty()
            ? "nothing to train: give --model FOLDER (finetune) or [model] layers (pretrain)"
            : "--model and [model] exclude each other: finetune or pretrain");
  }
  if (model.empty()) new_model.validate();
  if (train_data.empty())
    throw ConfigError("train-data is empty; make shards with `t2r prepare lm`");
  check_at_least("sequence-length", sequence_length, 1);
  check_at_least("batch-size", batch_size, 1);
  check_at_least("micro-batch-size", micro_batch_size, 0);
  check_at_least("steps", steps, 0);
  check_at_least("tokens", tokens, 0);
  check_at_least("seed", seed, 0);
  if ((steps > 0) == (tokens > 0)) throw ConfigError("give exactly one of steps and tokens");
  const int64_t step_tokens =
      checked_product("batch-size x sequence-length", {batch_size, sequence_length});
  check(total_steps() > 0,
        "tokens",
        std::to_string(tokens),
        concat(step_tokens, " (one step) or more"));
  checked_product("steps x batch-size x sequence-length", {total_steps(), step_tokens});
  check_at_least("warmup-steps", warmup_steps, 0);
  check_at_least("eval-every", eval_every, 0);
  check_at_least("eval-tokens", eval_tokens, 0);
  check_at_least("checkpoint-every", checkpoint_every, 0);
  check_at_least("keep-checkpoints", keep_checkpoints, 2);
  check_at_least("max-failed-saves", max_failed_saves, 1);
  check_at_least("max-skipped-steps", max_skipped_steps, 0);
  check_at_least("log-every", log_every, 1);
  check_at_least("threads", threads, 0);
  backend.validate();
  check_within("checkpoint-minutes", checkpoint_minutes, 0.0, 1e6);
  check_within("learning-rate", learning_rate, 0.0, 100.0);
  check_within("transfer-learning-rate", transfer_learning_rate, 0.0, 100.0);
  check(transfer_steps >= 0 && transfer_steps < total_steps(),
        "transfer-steps",
        std::to_string(transfer_steps),
        concat("0 to ", total_steps() - 1, " (steps - 1)"));
  check(transfer_steps == 0 || !model.empty(),
        "transfer-steps",
        std::to_string(transfer_steps),
        "0 when pretraining");
  check_within("distillation", distillation, 0.0, 1.0);
  check(!teacher.empty() || distillation == 1.0,
        "distillation",
        number_text(distillation),
        "1 without a teacher");
  check_within("map-learning-rate", map_learning_rate, 0.0, 100.0);
  check_within("final-lr-ratio", final_lr_ratio, 0.0, 1.0);
  check_within("beta1", beta1, 0.0, 0.9999999);
  check_within("beta2", beta2, 0.0, 0.9999999);
  check_within("eps", eps, 1e-30, 1.0);
  check_within("weight-decay", weight_decay, 0.0, 100.0);
  check_within("clip-norm", clip_norm, 0.0, 1e9);
  check_within("dropout", dropout, 0.0, 0.99);
}

int64_t TrainConfig::total_steps() const {
  return steps > 0 ? steps : tokens / (batch_size * sequence_length);
}

RunFacts TrainConfig::resume_identity() const {
  return {{"sequence-length", std::to_string(sequence_length)},
          {"batch-size", std::to_string(batch_size)},
          {"seed", std::to_string(seed)},
          {"transfer-steps", std::to_string(transfer_steps)}};
}

RunFacts TrainConfig::resume_options() const {
  return {{"steps", std::to_string(total_steps())},
          {"learning-rate", fact_text(learning_rate)},
          {"map-learning-rate", fact_text(map_learning_rate)},
          {"transfer-learning-rate", fact_text(transfer_learning_rate)},
          {"schedule", schedule},
          {"warmup-steps", std::to_string(warmup_steps)},
          {"final-lr-ratio", fact_text(final_lr_ratio)},
          {"beta1", fact_text(beta1)},
          {"beta2", fact_text(beta2)},
          {"eps", fact_text(eps)},
          {"weight-decay", fact_text(weight_decay)},
          {"clip-norm", fact_text(clip_norm)},
          {"dropout", fact_text(dropout)},
          {"precision", backend.precision},
          {"eval-tokens", std::to_string(eval_tokens)}};
}

}  // namespace t2r::launch
