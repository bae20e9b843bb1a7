#pragma once

#include <cstdint>
#include <filesystem>
#include <optional>
#include <set>
#include <string>
#include <vector>

#include "data/tokenizers/added_tokens.h"
#include "data/tokenizers/tokenizer.h"
#include "data/unicode/normalizer.h"

namespace t2r::data {

/// Left and right token, in the order of preference, and the token that they become.
struct BpeMerge {
  int32_t left = 0;
  int32_t right = 0;
  int32_t result = 0;
};

/// Spaces become U+2581 and one is put in front, as sentencepiece does.
struct Metaspace {
  enum class Prefix {
    kNever,
    kFirst,   ///< of the text's beginning alone
    kAlways,  ///< of every stretch between added tokens
  };
  Prefix prefix = Prefix::kAlways;  ///< none where the stretch begins with a space
  bool splits = true;               ///< words are pieces of their own
};

/// All that a BPE tokenizer is made of, whichever files it came from.
struct BpeDefinition {
  std::vector<std::string> vocabulary;  ///< by id, as in the files; "" = no token
  std::vector<BpeMerge> merges;         ///< the first is preferred
  std::vector<AddedToken> added_tokens;
  std::set<int32_t>
      beside_vocabulary;  ///< added tokens that the model lacks: it makes none of them
  std::vector<NormalizerStep> normalizer;
  std::optional<Metaspace> metaspace;  ///< the first stage of the pre-tokenizer
  std::vector<std::string> patterns;   ///< of the stages behind it

  /// Tokens are bytes, written in the byte alphabet; otherwise they are characters.
  bool byte_level = true;
  bool ignore_merges = false;  ///< a piece that is a token as a whole is not merged

  // Of a character that has no token, not byte level:
  bool byte_fallback = false;      ///< its bytes, <0x00> to <0xFF>
  std::optional<int32_t> unknown;  ///< else this; dropped if there is none
  bool fuse_unknown = false;       ///< one for several in a row

  // How ids become text, not byte level:
  TextRules text_rules;
  bool decodes_bytes = false;   ///< <0xE6> is a byte
  bool decodes_spaces = false;  ///< U+2581 is a space

  std::set<int32_t> special;  ///< Tokenizer::is_special()
  std::optional<int32_t> begin_of_text;
  std::optional<int32_t> end_of_document;  ///< named by the configuration
  std::vector<std::filesystem::path> files;
};

/// Of all that decides about ids; equal for every file form of the same tokenizer.
std::string hash_of(const BpeDefinition& definition);

/// The token that the configuration names; else <|endoftext|>, the added token </s>, or <eos>.
std::optional<int32_t> end_of_document_of(const BpeDefinition& definition);

}  // namespace t2r::data
