#pragma once

#include <array>
#include <cstdint>
#include <functional>
#include <optional>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "data/tokenizers/added_tokens.h"
#include "data/tokenizers/bpe_definition.h"
#include "data/tokenizers/pre_tokenizer.h"
#include "data/tokenizers/tokenizer.h"

namespace t2r::data {

inline constexpr int32_t kNoToken = -1;
inline constexpr std::string_view kSpaceSymbol = "\xE2\x96\x81";  // U+2581

struct TextHash {
  using is_transparent = void;
  size_t operator()(std::string_view text) const { return std::hash<std::string_view>{}(text); }
};

template <class Value>
using TextMap = std::unordered_map<std::string, Value, TextHash, std::equal_to<>>;

/// What a pair of tokens becomes; the lowest rank is merged first.
struct RankedMerge {
  int32_t rank = 0;
  int32_t result = 0;
};

/// Key of a pair of neighbours in BpeRules::merges.
inline uint64_t pair_key(int32_t left, int32_t right) {
  return (static_cast<uint64_t>(static_cast<uint32_t>(left)) << 32) | static_cast<uint32_t>(right);
}

/// What encode() and decode() look up; never changes after construction.
struct BpeRules {
  /// @throws DataError  if a pattern of the pre-tokenizer does not compile, or an added token is
  ///                     empty once it is normalized
  explicit BpeRules(BpeDefinition given);

  /// Tokens of single bytes and characters.
  void index_tokens();
  void index_pieces();

  BpeDefinition definition;  ///< without vocabulary and merges
  AddedTokens added_tokens;
  PreTokenizer pre_tokenizer;
  std::optional<int32_t> end_of_document;
  std::string hash;
  std::vector<TokenPiece> pieces;  ///< by id
  std::array<int32_t, 256> byte_ids{};
  TextMap<int32_t> characters;  ///< empty of a byte-level tokenizer
  std::unordered_map<uint64_t, RankedMerge> merges;
  TextMap<int32_t> whole_pieces;  ///< empty unless whole pieces go before merges
};

}  // namespace t2r::data
