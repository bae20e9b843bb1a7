#pragma once

#include <filesystem>

#include "data/tokenizers/bpe_definition.h"
#include "data/tokenizers/tokenizer_config.h"

namespace t2r::data {

/// The tokenizer that transformers makes of a sentencepiece BPE model for LlamaTokenizer: the
/// pieces are its vocabulary, and its merges are all pairs of pieces that make a piece, in the
/// order of ids. Control and user-defined pieces, <unk>, <s> and </s> are found in the text.
/// @throws DataError  if the model or the configuration breaks its format
BpeDefinition read_llama_model(const std::filesystem::path& model, const TokenizerConfig& config);

/// What LlamaTokenizer does around its vocabulary and merges, whatever tokenizer.json says.
void apply_llama_rules(const TokenizerConfig& config, BpeDefinition* definition);

}  // namespace t2r::data
