#pragma once

#include <cstdint>
#include <filesystem>
#include <nlohmann/json_fwd.hpp>
#include <optional>
#include <string>
#include <string_view>
#include <unordered_map>
#include <utility>
#include <vector>

#include "data/tokenizers/bpe_definition.h"
#include "data/tokenizers/tokenizer_config.h"

namespace t2r::data {

using TokenIds = std::unordered_map<std::string, int32_t>;

/// Reads a vocabulary (JSON object: token -> id) and merges ("left right" a line): vocab.json and
/// merges.txt, or encoder.json and vocab.bpe. The pre-tokenizer is GPT-2's, and <|endoftext|> is an
/// added token if the vocabulary has it; more come from the files of read_tokenizer_config().
/// @throws DataError  if a file breaks its format; names file and line
BpeDefinition read_vocabulary_and_merges(const std::filesystem::path& vocabulary,
                                         const std::filesystem::path& merges);

/// The same of the two texts, without other files; the paths are for messages.
BpeDefinition parse_vocabulary_and_merges(std::string_view vocabulary_text,
                                          std::string_view merges_text,
                                          const std::filesystem::path& vocabulary,
                                          const std::filesystem::path& merges);

/// Takes over the configuration's added tokens and its names of the tokens that begin and end a
/// text. Tokens that are new must have the next free ids, as transformers gives them.
/// @throws DataError  names file, token and id
void apply_config(const TokenizerConfig& config, BpeDefinition* definition);

/// Reads an object of token: id into `vocabulary`. Ids may have holes, but not many more than
/// tokens.
/// @throws DataError  names token, id and rule
TokenIds read_vocabulary(const std::filesystem::path& path,
                         const nlohmann::ordered_json& json,
                         std::vector<std::string>* vocabulary);

/// Ids by token; those without a token are left out.
TokenIds index_of(const std::vector<std::string>& vocabulary);

/// The id of a token that the configuration names; none, which is logged, if the vocabulary lacks
/// it.
/// @param file  for the message
std::optional<int32_t> find_token(const std::filesystem::path& file,
                                  const std::optional<std::string>& name,
                                  const TokenIds& ids);

/// Puts a token into the vocabulary.
/// @throws DataError  if the id is out of range or another token's
void place_token(const std::filesystem::path& path,
                 const std::string& token,
                 int64_t id,
                 std::vector<std::string>* vocabulary);

/// @param where  position of the merge in the file, for messages: "merge 3", "line 5"
/// @throws DataError  if one of the three tokens is not in the vocabulary
BpeMerge resolve_merge(const std::filesystem::path& path,
                       const std::string& where,
                       const std::pair<std::string, std::string>& parts,
                       const TokenIds& ids);

/// "left right" with one space.
std::pair<std::string, std::string> split_merge(const std::filesystem::path& path,
                                                const std::string& where,
                                                const std::string& text);

/// The character that stands for `byte` in vocabulary files.
/// Source: openai/gpt-2 src/encoder.py (bytes_to_unicode)
char32_t byte_symbol(uint8_t byte);

/// The bytes that a vocabulary entry stands for; none if it has other characters than byte symbols.
std::optional<std::string> decode_byte_symbols(std::string_view token);

}  // namespace t2r::data
