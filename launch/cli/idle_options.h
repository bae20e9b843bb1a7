#pragma once

#include <cstdint>

#include "launch/options/backend_options.h"
#include "launch/options/options.h"
#include "launch/train/train_config.h"
#include "model/trainable.h"

namespace t2r::launch {

/// One rule for all options: what contradicts another is refused, what has no effect is said in one
/// line. These say it for options that several commands have and for `t2r train`'s.

/// The backend's options without effect on a CPU or on one rank. Local.
/// @param backend  resolved
void say_idle_backend_options(const OptionSet& options,
                              const BackendOptions& backend,
                              int64_t num_ranks);

/// Options of the [model] table beside softmax attention.
void say_idle_model_table(const OptionSet& options, const NewModelConfig& table);

/// What a run of `t2r train` on this model does not use. Local.
/// @throws ConfigError  for what its model cannot do: attention transfer without feature maps
void say_idle_train_options(const OptionSet& options,
                            const TrainConfig& config,
                            const model::DecoderConfig& model,
                            int64_t num_ranks);

/// Refuses sequences that a learned position table has no rows for, and says when they are longer
/// than what a rotary model was trained on. Local.
/// @param key   the option that `length` comes from
/// @param role  what the model is, for the message
/// @throws ConfigError  naming key, length and the number of positions
void check_length(const char* key,
                  int64_t length,
                  const model::Trainable& model,
                  const char* role = "model");

}  // namespace t2r::launch
