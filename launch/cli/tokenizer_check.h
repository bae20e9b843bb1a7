#pragma once

#include <cstdint>
#include <filesystem>
#include <optional>
#include <string>

#include "data/corpus.h"
#include "data/tokenizers/tokenizer.h"

namespace t2r::launch {

/// @param path  of the tokenizer, for the message
/// @throws ConfigError  if the shards were made with another tokenizer
void check_tokenizer(const data::Tokenizer& tokenizer,
                     const std::string& path,
                     const data::Corpus& corpus);

/// Refuses a tokenizer that is not the one of a model: none of those in its folder, nor the one
/// whose hash its manifest names. A folder that knows of none accepts all; one whose tokenizer this
/// program cannot read does, too, and that is said.
/// @param hash   of the tokenizer in question
/// @param whose  subject of the message: "the shards in X were made with"
/// @throws ConfigError  naming both
void check_model_tokenizer(const std::filesystem::path& model_folder,
                           const std::string& hash,
                           const std::string& whose);

/// What --begin-of-text puts in front of a text.
struct BeginOfText {
  std::optional<int64_t> of_text;
  std::optional<int64_t> of_empty_text;  ///< which has no other token
};

/// With auto the token that the tokenizer's configuration puts there, and in front of an empty text
/// the model's where the tokenizer has none.
/// @param choice        of --begin-of-text; none is auto
/// @param models_begin  the token with which the folder of a model to continue with says that a
///                      text begins
/// @throws ConfigError  if it is true and nobody names such a token
BeginOfText begin_of_text(std::optional<bool> choice,
                          const data::Tokenizer& tokenizer,
                          std::optional<int64_t> models_begin = std::nullopt);

}  // namespace t2r::launch
