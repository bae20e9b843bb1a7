#include "data/tokenizers/bpe_rules.h"

#include <algorithm>
#include <charconv>
#include <utility>

#include "base/error.h"
#include "base/quoted_name.h"
#include "data/tokenizers/bpe_files.h"
#include "data/unicode/normalizer.h"
#include "data/unicode/utf8.h"

namespace t2r::data {
namespace {

std::vector<AddedToken> with_sought_texts(const BpeDefinition& definition) {
  std::vector<AddedToken> tokens = definition.added_tokens;
  for (AddedToken& token : tokens) {
    if (!token.normalized) continue;
    token.sought = normalize(definition.normalizer, token.content);
    if (token.sought.empty()) {
      throw DataError(
          concat(definition.files.empty() ? "" : definition.files.front().string() + ": ",
                 "added token ",
                 quoted_name(token.content),
                 " with id ",
                 token.id,
                 " is empty once it is normalized; allowed: normalized false, or a "
                 "normalizer that leaves something of it"));
    }
  }
  return tokens;
}

/// The byte that a token of the form <0xE6> stands for.
std::optional<uint8_t> named_byte(std::string_view token) {
  if (token.size() != 6 || !token.starts_with("<0x") || token[5] != '>') return std::nullopt;
  uint8_t byte = 0;
  const auto [end, error] = std::from_chars(token.data() + 3, token.data() + 5, byte, 16);
  return error == std::errc() && end == token.data() + 5 ? std::optional(byte) : std::nullopt;
}

/// Whether the name of a byte is the one that encoding looks up; decoding takes <0xe6> as well.
bool is_upper_case(std::string_view name) {
  return std::ranges::none_of(name.substr(3, 2), [](char c) { return c >= 'a' && c <= 'f'; });
}

}  // namespace

BpeRules::BpeRules(BpeDefinition given)
    : definition(std::move(given)),
      added_tokens(with_sought_texts(definition)),
      pre_tokenizer(definition.patterns),
      end_of_document(end_of_document_of(definition)),
      hash(hash_of(definition)) {
  index_tokens();
  index_pieces();
  merges.reserve(definition.merges.size());
  for (int32_t rank = 0; rank < std::ssize(definition.merges); ++rank) {
    const BpeMerge& merge = definition.merges[static_cast<size_t>(rank)];
    merges[pair_key(merge.left, merge.right)] = {rank, merge.result};
  }
  definition.vocabulary = {};
  definition.merges = {};
}

void BpeRules::index_tokens() {
  byte_ids.fill(kNoToken);
  for (int32_t id = 0; id < std::ssize(definition.vocabulary); ++id) {
    const std::string& token = definition.vocabulary[static_cast<size_t>(id)];
    if (token.empty() || definition.beside_vocabulary.contains(id)) continue;
    if (!definition.byte_level) {
      if (const auto byte = named_byte(token); byte && is_upper_case(token)) byte_ids[*byte] = id;
      if (read_utf8(token, 0).num_bytes == token.size()) characters.emplace(token, id);
      if (definition.ignore_merges) whole_pieces.emplace(token, id);
      continue;
    }
    const std::optional<std::string> bytes = decode_byte_symbols(token);
    if (!bytes) continue;
    if (bytes->size() == 1) byte_ids[static_cast<uint8_t>(bytes->front())] = id;
    if (definition.ignore_merges) whole_pieces.emplace(*bytes, id);
  }
}

void BpeRules::index_pieces() {
  using Kind = TokenPiece::Kind;
  const NormalizerStep to_spaces = {
      .kind = NormalizerStep::Kind::kReplace, .from = std::string(kSpaceSymbol), .to = " "};
  for (const std::string& token : definition.vocabulary) {
    TokenPiece& piece = pieces.emplace_back();
    if (token.empty()) continue;
    const auto byte = definition.decodes_bytes ? named_byte(token) : std::nullopt;
    piece.kind = byte ? Kind::kByte : Kind::kText;
    if (byte) {
      piece.text = {static_cast<char>(*byte)};
    } else if (definition.byte_level) {
      piece.text = decode_byte_symbols(token).value_or(token);
    } else {
      piece.text = definition.decodes_spaces ? normalize({to_spaces}, token) : token;
    }
  }
}

}  // namespace t2r::data
