#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "launch/checkpoints/run_facts.h"
#include "launch/options/backend_options.h"
#include "launch/options/option_groups.h"
#include "launch/options/options.h"
#include "launch/train/lr_schedule.h"
#include "model/config.h"

namespace t2r::launch {

/// A model that does not exist yet; the [model] table.
struct NewModelConfig {
  std::string family = "llama";
  int64_t num_layers = 0;  ///< 0: no [model] table
  int64_t hidden_size = 256;
  int64_t num_heads = 4;
  int64_t num_kv_heads = 0;       ///< 0: as many as num_heads
  int64_t intermediate_size = 0;  ///< 0: 4 x hidden; with a gate 8/3 x, rounded up to 32
  int64_t max_positions = 0;      ///< 0: the sequence length
  bool tied_embeddings = true;
  std::string attention = "softmax";  ///< or a feature map
  int64_t feature_size = 0;           ///< 0: the map's default; elu has no other
  std::vector<int64_t> softmax_layers = {};

  void bind(OptionSet& options);

  /// The model's config for a vocabulary and a sequence length.
  /// @throws ConfigError  if options do not fit each other
  model::DecoderConfig resolve(int64_t vocab_size, int64_t sequence_length) const;
};

/// Everything that `t2r train` can be told.
struct TrainConfig : BatchOptions {
  std::string output;
  std::string model;  ///< folder to finetune; empty: pretrain new_model
  NewModelConfig new_model;
  std::string tokenizer;  ///< folder or file; empty: the model folder's, if it has one
  std::vector<std::string> train_data;
  std::vector<std::string> valid_data;

  int64_t steps = 0;
  int64_t tokens = 0;  ///< budget instead of steps; rounded down to whole steps
  int64_t seed = 1;

  double learning_rate = 3e-4;
  double map_learning_rate = 0.0;  ///< 0: learning_rate
  int64_t transfer_steps =
      0;  ///< of `steps`: attention transfer, which trains the feature maps alone
  double transfer_learning_rate = 1e-2;
  std::string teacher;        ///< folder of a model to learn from beside the text; empty: none
  double distillation = 1.0;  ///< its share of the loss
  LrShape schedule = LrShape::kCosine;
  int64_t warmup_steps = 0;
  double final_lr_ratio = 0.1;
  double beta1 = 0.9, beta2 = 0.95, eps = 1e-8, weight_decay = 0.1;
  double clip_norm = 1.0;  ///< 0: no clipping
  double dropout = 0.0;

  int64_t eval_every = 0;   ///< steps; 0: at the end only
  int64_t eval_tokens = 0;  ///< at most; 0: all of the validation data
  bool eval_at_start = false;
  int64_t checkpoint_every = 0;     ///< steps; 0: at the end only
  double checkpoint_minutes = 0.0;  ///< since the newest save; 0: off
  int64_t keep_checkpoints = 3;
  int64_t max_failed_saves = 3;
  int64_t max_skipped_steps = 10;  ///< in a row
  int64_t log_every = 10;
  bool resume = false;
  BackendOptions backend;

  void bind(OptionSet& options);

  /// The rules between options; each option's own are where it is bound.
  /// @throws ConfigError  naming option, value and what is allowed
  void validate() const;

  int64_t total_steps() const;

  /// The options that a resumed run must share with its checkpoint, or those that it may change,
  /// which is said.
  RunFacts facts(OnResume kind) const;

 private:
  void bind_data(OptionSet& options);
  void bind_optimizer(OptionSet& options);
  void bind_stages(OptionSet& options);
  void bind_evaluation(OptionSet& options);
  void bind_checkpoints(OptionSet& options);
};

}  // namespace t2r::launch
