#pragma once

#include <filesystem>
#include <string_view>
#include <vector>

#include "base/error.h"
#include "data/tokenizers/bpe_definition.h"

namespace t2r::data {

/// A tokenizer.json that is sound, of a kind that t2r does not do; another file of the same
/// tokenizer may serve.
class UnsupportedTokenizer : public DataError {
 public:
  using DataError::DataError;
};

/// Reads Hugging Face's tokenizer.json, and the files of read_tokenizer_config() beside it:
/// byte-level BPE (GPT-2, Llama 3, Qwen), and BPE on characters with byte fallback (Llama 2,
/// TinyLlama, Mistral). Of the post_processor the token that begins a text is taken; truncation and
/// padding are not applied.
/// @throws DataError  if a file breaks its format, or asks for what t2r does not do; names the
/// file,
///                    what was found and what is allowed
BpeDefinition read_tokenizer_json(const std::filesystem::path& path);

/// The added tokens of a tokenizer.json of any kind.
/// @throws DataError  as above
std::vector<AddedToken> read_added_tokens_of(const std::filesystem::path& path);

/// read_tokenizer_json() of a text, without the files beside it.
BpeDefinition parse_tokenizer_json(std::string_view text, const std::filesystem::path& path);

}  // namespace t2r::data
