#pragma once

#include <cstdint>
#include <filesystem>
#include <optional>
#include <set>
#include <string>
#include <vector>

#include "data/tokenizers/added_tokens.h"

namespace t2r::data {

/// What the files beside a tokenizer say of it, as transformers 5.24 reads them:
/// tokenizer_config.json, special_tokens_map.json (unless the former lists its added tokens) and
/// added_tokens.json.
struct TokenizerConfig {
  std::string tokenizer_class;  ///< without the ending Fast; may be empty
  std::optional<bool> adds_begin_of_text, adds_prefix_space, legacy;
  std::optional<std::string> begin_of_text, end_of_text, unknown;  ///< tokens
  std::set<std::string> special;  ///< tokens with a name: those, pad_token and their like
  /// By id, each id and content once; those of added_tokens_decoder or added_tokens.json.
  std::vector<AddedToken> added_tokens;
  std::vector<std::filesystem::path> files;  ///< those that are there
};

/// @throws DataError  if a file breaks its format; names file, byte or key, and rule
TokenizerConfig read_tokenizer_config(const std::filesystem::path& folder);

/// Highest id that is believed; more would be a damaged file and gigabytes of empty vocabulary.
inline constexpr int64_t kMaxTokenId = (int64_t{1} << 24) - 1;

}  // namespace t2r::data
