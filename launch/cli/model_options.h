#pragma once

#include <cstdint>
#include <filesystem>
#include <memory>
#include <string>

#include "data/tokenizers/tokenizer.h"
#include "launch/options/backend_options.h"
#include "launch/options/options.h"

namespace t2r::launch {

/// The options that every command which runs a finished model has.
struct ModelOptions {
  std::string folder, tokenizer;
  BackendOptions backend;

  void bind(OptionSet& options);

  /// The model folder, where it is `latest` or `best` the checkpoint that it means.
  std::filesystem::path resolved_folder() const;

  /// The one that --tokenizer names, else the model folder's.
  /// @throws ConfigError  if --tokenizer is not the model's (check_model_tokenizer)
  std::unique_ptr<data::Tokenizer> open_tokenizer() const;
};

}  // namespace t2r::launch
