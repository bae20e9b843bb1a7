#include "data/byte_bpe.h"

#include <algorithm>
#include <array>
#include <atomic>
#include <mutex>
#include <queue>
#include <unordered_map>
#include <utility>

#include "base/error.h"
#include "base/hash.h"
#include "base/log.h"
#include "data/added_tokens.h"
#include "data/pre_tokenizer.h"
#include "data/utf8.h"

namespace t2r::data {
namespace {

constexpr int32_t kNoToken = -1;

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

uint64_t pair_key(int32_t left, int32_t right) {
  return (static_cast<uint64_t>(static_cast<uint32_t>(left)) << 32) | static_cast<uint32_t>(right);
}

/// Each text with its length before it, so that neighbours cannot run into one another.
void update_with(std::string_view text, Hasher* hasher) {
  hasher->update(concat(text.size(), ":"));
  hasher->update(text);
}

std::string hash_definition(const ByteBpeDefinition& definition, const AddedTokens& added) {
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
  update_with(definition.ignore_merges ? "whole pieces first" : "merges only", &hasher);
  const auto num_normalized = std::ranges::count_if(added.tokens(), &AddedToken::normalized);
  // Which pass finds a token matters only if there are tokens of both passes.
  const bool two_passes = num_normalized > 0 && num_normalized < std::ssize(added.tokens());
  for (const AddedToken& token : added.tokens()) {
    update_with(token.content, &hasher);
    update_with(concat(token.id,
                       token.strips_left ? " left" : "",
                       token.strips_right ? " right" : "",
                       two_passes && token.normalized ? " second" : ""),
                &hasher);
  }
  return hasher.hex();
}

std::optional<int32_t> find_end_of_document(const ByteBpeDefinition& definition) {
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

}  // namespace

/// What encode() and decode() look up; never changes after construction.
struct ByteBpe::Rules {
  explicit Rules(ByteBpeDefinition definition);

  std::vector<std::string> pieces;  ///< bytes by id; empty for an id without token
  std::array<int32_t, 256> byte_ids{};
  std::unordered_map<uint64_t, RankedMerge> merges;
  TextMap<int32_t> whole_pieces;  ///< empty unless whole pieces go before merges
  AddedTokens added_tokens;
  PreTokenizer pre_tokenizer;
  std::optional<int32_t> end_of_document;
  std::string hash;
  std::vector<std::filesystem::path> files;
};

ByteBpe::Rules::Rules(ByteBpeDefinition definition)
    : added_tokens(definition.added_tokens),
      pre_tokenizer(definition.patterns),
      end_of_document(find_end_of_document(definition)),
      hash(hash_definition(definition, added_tokens)),
      files(std::move(definition.files)) {
  byte_ids.fill(kNoToken);
  for (const std::string& token : definition.vocabulary) {
    const auto id = static_cast<int32_t>(pieces.size());
    const std::optional<std::string> bytes = decode_byte_symbols(token);
    pieces.push_back(bytes.value_or(token));
    if (!bytes) continue;
    if (bytes->size() == 1) byte_ids[static_cast<uint8_t>(bytes->front())] = id;
    if (definition.ignore_merges) whole_pieces.emplace(*bytes, id);
  }
  for (const AddedToken& token : definition.added_tokens) {
    pieces[static_cast<size_t>(token.id)] = token.content;
  }
  merges.reserve(definition.merges.size());
  for (int32_t rank = 0; rank < std::ssize(definition.merges); ++rank) {
    const BpeMerge& merge = definition.merges[static_cast<size_t>(rank)];
    merges[pair_key(merge.left, merge.right)] = {rank, merge.result};
  }
}

/// Merges the bytes of pieces and remembers the outcome. One thread at a time.
class ByteBpe::Encoder {
 public:
  /// Appends the ids of a piece of pre-tokenised text to `ids`.
  /// @return  number of bytes that were dropped because they have no token
  int64_t encode_piece(const Rules& rules, std::string_view piece, std::vector<int32_t>* ids);

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

  int64_t lay_out(const Rules& rules, std::string_view piece);
  void add_candidate(const Rules& rules, int32_t position);
  void merge(const Rules& rules);

  std::vector<Symbol> symbols_;
  std::priority_queue<Candidate> candidates_;
  TextMap<std::vector<int32_t>> remembered_;
};

int64_t ByteBpe::Encoder::encode_piece(const Rules& rules,
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

int64_t ByteBpe::Encoder::lay_out(const Rules& rules, std::string_view piece) {
  require(piece.size() < size_t{1} << 31, "a piece of pre-tokenised text exceeds 2 GiB");
  symbols_.clear();
  int64_t num_dropped = 0;
  for (const char byte : piece) {
    const int32_t id = rules.byte_ids[static_cast<uint8_t>(byte)];
    if (id == kNoToken) {
      ++num_dropped;
      continue;
    }
    const auto position = static_cast<int32_t>(symbols_.size());
    symbols_.push_back({id, position - 1, position + 1});
  }
  if (!symbols_.empty()) symbols_.back().next = -1;
  return num_dropped;
}

void ByteBpe::Encoder::add_candidate(const Rules& rules, int32_t position) {
  if (position < 0) return;
  const Symbol& left = symbols_[static_cast<size_t>(position)];
  if (left.next < 0) return;
  const auto found =
      rules.merges.find(pair_key(left.id, symbols_[static_cast<size_t>(left.next)].id));
  if (found == rules.merges.end()) return;
  candidates_.push({found->second.rank, position, found->second.result});
}

void ByteBpe::Encoder::merge(const Rules& rules) {
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

/// Encoders that no call uses at the moment, so that what they remember serves later calls.
struct ByteBpe::EncoderPool {
  std::unique_ptr<Encoder> take() {
    const std::lock_guard lock(mutex);
    if (idle.empty()) return std::make_unique<Encoder>();
    std::unique_ptr<Encoder> encoder = std::move(idle.back());
    idle.pop_back();
    return encoder;
  }

  void give_back(std::unique_ptr<Encoder> encoder) {
    const std::lock_guard lock(mutex);
    idle.push_back(std::move(encoder));
  }

  std::mutex mutex;
  std::vector<std::unique_ptr<Encoder>> idle;
  std::atomic<bool> warned_of_drops = false;
};

ByteBpe::ByteBpe(ByteBpeDefinition definition)
    : rules_(std::make_unique<Rules>(std::move(definition))),
      encoders_(std::make_unique<EncoderPool>()) {}

ByteBpe::~ByteBpe() = default;

std::vector<int32_t> ByteBpe::encode(std::string_view text) const {
  std::string replaced;
  if (find_invalid_utf8(text) < text.size()) text = replaced = replace_invalid_utf8(text);
  std::unique_ptr<Encoder> encoder = encoders_->take();
  std::vector<int32_t> ids;
  int64_t num_dropped = 0;
  const auto take_piece = [&](std::string_view piece) {
    num_dropped += encoder->encode_piece(*rules_, piece, &ids);
  };
  const auto take_text = [&](std::string_view stretch) {
    rules_->pre_tokenizer.split(stretch, take_piece);
  };
  rules_->added_tokens.split(text, take_text, [&](int32_t id) { ids.push_back(id); });
  encoders_->give_back(std::move(encoder));
  if (num_dropped > 0 && !encoders_->warned_of_drops.exchange(true)) {
    log::warning(concat(rules_->files.empty() ? "tokenizer" : rules_->files.front().string(),
                        ": ",
                        num_dropped,
                        " byte(s) of a text have no token and were dropped, as "
                        "Hugging Face does; said once"));
  }
  return ids;
}

std::string ByteBpe::decode(const std::vector<int32_t>& ids) const {
  std::string text;
  for (const int32_t id : ids) text += piece(id).text;
  return text;
}

TokenPiece ByteBpe::piece(int32_t id) const {
  if (id < 0) throw DataError(concat("token id ", id, " is negative"));
  if (id >= vocab_size()) return {};
  const std::string& bytes = rules_->pieces[static_cast<size_t>(id)];
  if (bytes.empty()) return {};
  return {.kind = TokenPiece::Kind::kText, .text = bytes};
}

int64_t ByteBpe::vocab_size() const {
  return std::ssize(rules_->pieces);
}

std::optional<int32_t> ByteBpe::end_of_document() const {
  return rules_->end_of_document;
}

std::string ByteBpe::hash() const {
  return rules_->hash;
}

std::vector<std::filesystem::path> ByteBpe::files() const {
  return rules_->files;
}

}  // namespace t2r::data
