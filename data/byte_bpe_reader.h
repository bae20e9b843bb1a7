#pragma once

#include <cstdint>
#include <filesystem>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "data/added_tokens.h"

namespace t2r::data {

/// Left and right token, in the order of preference, and the token that they become.
struct BpeMerge {
  int32_t left = 0;
  int32_t right = 0;
  int32_t result = 0;
};

/// All that a byte-level BPE tokenizer is made of, whichever files it came from.
struct ByteBpeDefinition {
  std::vector<std::string>
      vocabulary;                ///< by id, in the byte alphabet as in the files; "" = no token
  std::vector<BpeMerge> merges;  ///< the first is preferred
  std::vector<AddedToken> added_tokens;
  std::vector<std::string> patterns;  ///< of the pre-tokenizer's stages
  bool ignore_merges = false;         ///< a piece that is a token as a whole is not merged
  std::vector<std::filesystem::path> files;
};

/// Reads Hugging Face's tokenizer.json. Read and not applied: post_processor, decoder, truncation
/// and padding, which are about sequences and batches.
/// @throws DataError  if the file breaks its format, or asks for what t2r does not do (a
/// normalizer,
///                    a model that is not BPE, a pre-tokenizer other than Sequence, Digits, Split
///                    and a final ByteLevel, ...); names the file, what was found and what is
///                    allowed
ByteBpeDefinition read_tokenizer_json(const std::filesystem::path& path);

/// Reads a vocabulary (JSON object: token -> id) and merges ("left right" a line): vocab.json and
/// merges.txt, or encoder.json and vocab.bpe. The pre-tokenizer is GPT-2's, and <|endoftext|> is an
/// added token if the vocabulary has it.
/// @throws DataError  as above; names file and line
ByteBpeDefinition read_vocabulary_and_merges(const std::filesystem::path& vocabulary,
                                             const std::filesystem::path& merges);

/// The character that stands for `byte` in vocabulary files.
/// Source: openai/gpt-2 src/encoder.py (bytes_to_unicode)
char32_t byte_symbol(uint8_t byte);

/// The bytes that a vocabulary entry stands for; none if it has other characters than byte symbols.
std::optional<std::string> decode_byte_symbols(std::string_view token);

}  // namespace t2r::data
