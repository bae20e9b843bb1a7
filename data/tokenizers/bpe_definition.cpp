#include "data/tokenizers/bpe_definition.h"

#include <algorithm>

#include "base/error.h"
#include "base/hash.h"
#include "data/tokenizers/pre_tokenizer.h"
#include "data/unicode/utf8.h"

namespace t2r::data {
namespace {

/// Each text with its length before it, so that neighbours cannot run into one another.
void update_with(std::string_view text, Hasher* hasher) {
  hasher->update(concat(text.size(), ":"));
  hasher->update(text);
}

/// Only of tokenizers on characters: what byte-level ones were hashed without.
void hash_characters(const BpeDefinition& definition, Hasher* hasher) {
  update_with(concat("characters",
                     definition.byte_fallback ? " bytes" : "",
                     definition.fuse_unknown ? " fused " : " ",
                     definition.unknown.value_or(-1)),
              hasher);
}

/// Earlier versions let the model make added tokens that it lacks, and bytes with lower-case names:
/// what either changes has another hash.
bool differs_from_before(const BpeDefinition& definition) {
  const auto was_made = [&](const AddedToken& token) {
    const bool is_one_character = read_utf8(token.content, 0).num_bytes == token.content.size();
    return definition.beside_vocabulary.contains(token.id) &&
           (token.single_word || !definition.normalizer.empty()) &&
           (is_one_character || definition.ignore_merges);
  };
  const auto is_lower_case_byte = [](const std::string& token) {
    return token.size() == 6 && token.starts_with("<0x") && token.ends_with('>') &&
           token.find_first_of("abcdef") != token.npos;
  };
  return std::ranges::any_of(definition.added_tokens, was_made) ||
         (definition.byte_fallback &&
          std::ranges::any_of(definition.vocabulary, is_lower_case_byte));
}

}  // namespace

std::string hash_of(const BpeDefinition& definition) {
  const AddedTokens added(definition.added_tokens);
  Hasher hasher;
  update_with("byte-level BPE, form 1", &hasher);
  update_with(concat(definition.vocabulary.size()), &hasher);
  for (const std::string& token : definition.vocabulary) update_with(token, &hasher);
  update_with(concat(definition.merges.size()), &hasher);
  for (const BpeMerge& merge : definition.merges) {
    update_with(concat(merge.left, " ", merge.right), &hasher);
  }
  for (const std::string& pattern : definition.patterns) {
    update_with(pattern_identity(pattern), &hasher);
  }
  if (!definition.byte_level) hash_characters(definition, &hasher);
  for (const NormalizerStep& step : definition.normalizer) update_with(describe(step), &hasher);
  if (definition.metaspace) {
    update_with(concat("metaspace ",
                       static_cast<int>(definition.metaspace->prefix),
                       definition.metaspace->splits ? " splits" : ""),
                &hasher);
  }
  update_with(definition.ignore_merges ? "whole pieces first" : "merges only", &hasher);
  const auto num_normalized = std::ranges::count_if(added.tokens(), &AddedToken::normalized);
  // Which pass finds a token matters only if there are tokens of both passes.
  const bool two_passes = num_normalized > 0 && num_normalized < std::ssize(added.tokens());
  for (const AddedToken& token : added.tokens()) {
    update_with(token.content, &hasher);
    update_with(concat(token.id,
                       token.strips_left ? " left" : "",
                       token.strips_right ? " right" : "",
                       token.single_word ? " word" : "",
                       two_passes && token.normalized ? " second" : ""),
                &hasher);
  }
  if (differs_from_before(definition)) update_with("of the vocabulary alone", &hasher);
  return hasher.hex();
}

std::optional<int32_t> end_of_document_of(const BpeDefinition& definition) {
  if (definition.end_of_document) return definition.end_of_document;
  const auto& vocabulary = definition.vocabulary;
  const auto end_of_text = std::ranges::find(vocabulary, "<|endoftext|>");
  if (end_of_text != vocabulary.end()) {
    return static_cast<int32_t>(end_of_text - vocabulary.begin());
  }
  for (const std::string_view name : {"</s>", "<eos>"}) {
    for (const AddedToken& token : definition.added_tokens) {
      if (token.content == name) return token.id;
    }
  }
  return std::nullopt;
}

}  // namespace t2r::data
