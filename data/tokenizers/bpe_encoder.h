#pragma once

#include <cstdint>
#include <queue>
#include <string_view>
#include <vector>

#include "data/tokenizers/bpe_rules.h"

namespace t2r::data {

/// Merges the bytes or characters of pieces and remembers the outcome. One thread at a time.
class BpeEncoder {
 public:
  /// Appends the ids of a piece of pre-tokenised text to `ids`.
  /// @return  number of bytes that were dropped because they have no token
  int64_t encode_piece(const BpeRules& rules, std::string_view piece, std::vector<int32_t>* ids);

 private:
  /// A token of the piece in a doubly linked list; neighbours by index, -1 at the ends.
  struct Symbol {
    int32_t id;
    int32_t previous;
    int32_t next;
  };
  struct Candidate {
    int32_t rank;
    int32_t position;
    int32_t result;
    /// std::priority_queue gives its greatest: the lowest rank, and of those the leftmost.
    bool operator<(const Candidate& other) const {
      return rank != other.rank ? rank > other.rank : position > other.position;
    }
  };

  /// Enough for the frequent words of a corpus, a few MB.
  static constexpr size_t kMaxRemembered = 1 << 16;
  static constexpr size_t kMaxRememberedBytes = 64;

  int64_t lay_out(const BpeRules& rules, std::string_view piece);
  int64_t lay_out_bytes(const BpeRules& rules, std::string_view piece);
  int64_t lay_out_characters(const BpeRules& rules, std::string_view piece);
  void push(int32_t id);
  void add_candidate(const BpeRules& rules, int32_t position);
  void merge(const BpeRules& rules);

  std::vector<Symbol> symbols_;
  std::priority_queue<Candidate> candidates_;
  TextMap<std::vector<int32_t>> remembered_;
};

}  // namespace t2r::data
