#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "data/tokenizers/tokenizer.h"
#include "launch/options/options.h"
#include "model/nets/decoder_lm.h"

namespace t2r::launch {

/// A text to continue.
struct Prompt {
  std::string text;
  std::vector<int64_t> ids;
  bool has_begin_of_text = false;  ///< ids begin with a token that the text does not have
};

/// The options that say what is continued.
struct PromptOptions {
  std::vector<std::string> prompts;
  std::string prompt_file, prompts_file;
  std::optional<bool> begin_of_text;  ///< empty: as the tokenizer says

  void bind(OptionSet& options);

  /// @throws UsageError  unless prompts come from exactly one of the options
  void validate() const;

  /// The texts in order, valid UTF-8, one or more.
  /// @throws DataError  naming the prompt or the file
  std::vector<std::string> read() const;

  /// `texts` as tokens, behind what launch::begin_of_text() puts in front of them.
  /// @param vocab_size    rows of the model
  /// @param models_begin  the token with which the model's folder says that a text begins
  /// @throws DataError    if a prompt has no tokens, or one that the model does not have
  /// @throws ConfigError  if a begin-of-text token is asked for, and nobody names one
  std::vector<Prompt> encode(const std::vector<std::string>& texts,
                             const data::Tokenizer& tokenizer,
                             int64_t vocab_size,
                             std::optional<int64_t> models_begin) const;
};

/// Tokens that may be added to each prompt, at most `max_new_tokens`: fewer where the model's
/// learned positions end. Says in one line where that is so, or where a text may pass the positions
/// that a model was trained with.
/// @throws ConfigError  if a prompt alone has more tokens than the model has positions
std::vector<int64_t> tokens_to_add(const std::vector<Prompt>& prompts,
                                   const model::DecoderLM& model,
                                   int64_t max_new_tokens);

/// Which prompts are continued together: those of equally many tokens, `batch_size` at most; the
/// batches in the order of their first prompts.
std::vector<std::vector<size_t>> batches_of(const std::vector<Prompt>& prompts, int64_t batch_size);

}  // namespace t2r::launch
