#include "data/tokenizers/bpe_encoder.h"

#include <algorithm>

#include "base/error.h"
#include "data/unicode/utf8.h"

namespace t2r::data {

int64_t BpeEncoder::encode_piece(const BpeRules& rules,
                                 std::string_view piece,
                                 std::vector<int32_t>* ids) {
  const auto known = remembered_.find(piece);
  if (known != remembered_.end()) {
    ids->insert(ids->end(), known->second.begin(), known->second.end());
    return 0;
  }
  const auto whole = rules.whole_pieces.find(piece);
  if (whole != rules.whole_pieces.end()) {
    ids->push_back(whole->second);
    return 0;
  }
  const int64_t num_dropped = lay_out(rules, piece);
  merge(rules);
  const auto begin = std::ssize(*ids);
  for (int32_t i = symbols_.empty() ? -1 : 0; i >= 0; i = symbols_[static_cast<size_t>(i)].next) {
    ids->push_back(symbols_[static_cast<size_t>(i)].id);
  }
  if (num_dropped == 0 && piece.size() <= kMaxRememberedBytes) {
    if (remembered_.size() >= kMaxRemembered) remembered_.clear();
    remembered_.emplace(piece, std::vector<int32_t>(ids->begin() + begin, ids->end()));
  }
  return num_dropped;
}

int64_t BpeEncoder::lay_out(const BpeRules& rules, std::string_view piece) {
  require(piece.size() < size_t{1} << 31, "a piece of pre-tokenised text exceeds 2 GiB");
  symbols_.clear();
  const int64_t num_dropped =
      rules.definition.byte_level ? lay_out_bytes(rules, piece) : lay_out_characters(rules, piece);
  if (!symbols_.empty()) symbols_.back().next = -1;
  return num_dropped;
}

void BpeEncoder::push(int32_t id) {
  const auto position = static_cast<int32_t>(symbols_.size());
  symbols_.push_back({id, position - 1, position + 1});
}

int64_t BpeEncoder::lay_out_bytes(const BpeRules& rules, std::string_view piece) {
  int64_t num_dropped = 0;
  for (const char byte : piece) {
    const int32_t id = rules.byte_ids[static_cast<uint8_t>(byte)];
    if (id == kNoToken) {
      ++num_dropped;
    } else {
      push(id);
    }
  }
  return num_dropped;
}

/// A character, or its bytes, or the unknown token, which waits for the next character that has a
/// token. Source: huggingface/tokenizers models/bpe/model.rs (merge_word)
int64_t BpeEncoder::lay_out_characters(const BpeRules& rules, std::string_view piece) {
  const BpeDefinition& definition = rules.definition;
  int64_t num_dropped = 0;
  bool unknown_waits = false;
  for (size_t offset = 0; offset < piece.size();) {
    const std::string_view character = piece.substr(offset, read_utf8(piece, offset).num_bytes);
    offset += character.size();
    const auto known = rules.characters.find(character);
    if (known != rules.characters.end()) {
      if (unknown_waits) push(*definition.unknown);
      unknown_waits = false;
      push(known->second);
      continue;
    }
    const auto has_token = [&](char byte) {
      return rules.byte_ids[static_cast<uint8_t>(byte)] != kNoToken;
    };
    if (definition.byte_fallback && std::ranges::all_of(character, has_token)) {
      for (const char byte : character) push(rules.byte_ids[static_cast<uint8_t>(byte)]);
    } else if (!definition.unknown) {
      num_dropped += std::ssize(character);
    } else {
      if (unknown_waits && !definition.fuse_unknown) push(*definition.unknown);
      unknown_waits = true;
    }
  }
  if (unknown_waits) push(*definition.unknown);
  return num_dropped;
}

void BpeEncoder::add_candidate(const BpeRules& rules, int32_t position) {
  if (position < 0) return;
  const Symbol& left = symbols_[static_cast<size_t>(position)];
  if (left.next < 0) return;
  const auto found =
      rules.merges.find(pair_key(left.id, symbols_[static_cast<size_t>(left.next)].id));
  if (found == rules.merges.end()) return;
  candidates_.push({found->second.rank, position, found->second.result});
}

void BpeEncoder::merge(const BpeRules& rules) {
  for (int32_t i = 0; i < std::ssize(symbols_); ++i) add_candidate(rules, i);
  while (!candidates_.empty()) {
    const Candidate best = candidates_.top();
    candidates_.pop();
    Symbol& left = symbols_[static_cast<size_t>(best.position)];
    if (left.id == kNoToken || left.next < 0) continue;
    Symbol& right = symbols_[static_cast<size_t>(left.next)];
    // The pair may have changed since it was queued; as in Hugging Face, only its result counts.
    const auto found = rules.merges.find(pair_key(left.id, right.id));
    if (found == rules.merges.end() || found->second.result != best.result) continue;
    left.id = best.result;
    left.next = right.next;
    right.id = kNoToken;
    if (left.next >= 0) symbols_[static_cast<size_t>(left.next)].previous = best.position;
    add_candidate(rules, left.previous);
    add_candidate(rules, best.position);
  }
}

}  // namespace t2r::data
