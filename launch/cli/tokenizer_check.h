#pragma once

#include <filesystem>
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

/// Whether documents begin with the token that a tokenizer's configuration puts in front of a text.
/// @param choice  of --begin-of-text: auto, true or false
/// @throws ConfigError  if it is true and the tokenizer has no such token
bool adds_begin_of_text(const std::string& choice, const data::Tokenizer& tokenizer);

}  // namespace t2r::launch
