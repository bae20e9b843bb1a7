#pragma once

#include <cstdint>
#include <memory>
#include <string>

#include "launch/options/options.h"
#include "launch/train/train_config.h"
#include "model/nets/decoder_lm.h"

namespace t2r::launch {

/// The model that a benchmark runs: a folder's, or a random one, by default a GPT-2-124M with T2R.
struct BenchModel {
  std::string folder;
  int64_t vocab_size = 50304;
  NewModelConfig table{
      .family = "gpt2", .num_layers = 12, .hidden_size = 768, .num_heads = 12, .attention = "t2r"};

  void bind(OptionSet& options);

  /// What the model, or the choice between the two, makes idle. Local.
  void say_idle(const OptionSet& options) const;

  /// On the CPU. Local.
  /// @param positions  that a model of the table has room for
  std::unique_ptr<model::DecoderLM> make(int64_t positions) const;
};

}  // namespace t2r::launch
