#pragma once

#include <cstdint>
#include <filesystem>
#include <memory>
#include <string>

#include "data/tokenizers/tokenizer.h"
#include "dist/communicator.h"
#include "launch/options/backend_options.h"
#include "launch/options/options.h"

namespace t2r::launch {

/// The options that every command which runs a finished model has.
struct ModelOptions {
  std::string folder, tokenizer;
  BackendOptions backend;
  std::filesystem::path model_path, tokenizer_path;  ///< after resolve()

  void bind(OptionSet& options);

  /// Finds once for the command what the two names mean (resolve_checkpoint). Local.
  void resolve();

  /// The same by rank 0, for all ranks. Collective: every rank, same order.
  void resolve(dist::Communicator& communicator);

  /// The one that --tokenizer names, else the model folder's.
  /// @throws ConfigError  if --tokenizer is not the model's (check_model_tokenizer)
  std::unique_ptr<data::Tokenizer> open_tokenizer() const;
};

}  // namespace t2r::launch
