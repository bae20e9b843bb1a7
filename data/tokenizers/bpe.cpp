#include "data/tokenizers/bpe.h"

#include <algorithm>
#include <array>
#include <atomic>
#include <charconv>
#include <mutex>
#include <queue>
#include <unordered_map>
#include <utility>

#include "base/error.h"
#include "base/log.h"
#include "base/quoted_name.h"
#include "data/tokenizers/added_tokens.h"
#include "data/tokenizers/bpe_files.h"
#include "data/tokenizers/pre_tokenizer.h"
#include "data/tokenizers/stream_decoder.h"
#include "data/unicode/normalizer.h"
#include "data/unicode/utf8.h"

namespace t2r::data {
namespace {

constexpr int32_t kNoToken = -1;
constexpr std::string_view kSpaceSymbol = "\xE2\x96\x81";  // U+2581

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

}  // namespace

/// What encode() and decode() look up; never changes after construction.
struct Bpe::Rules {
  explicit Rules(BpeDefinition given);

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

namespace {

/// Spaces as U+2581, and one in front unless the stretch begins with one.
std::string with_metaspace(const Metaspace& metaspace, std::string_view stretch, bool at_start) {
  using Prefix = Metaspace::Prefix;
  const bool prefixes =
      metaspace.prefix == Prefix::kAlways || (metaspace.prefix == Prefix::kFirst && at_start);
  std::string spaced;
  if (prefixes && !stretch.starts_with(' ') && !stretch.starts_with(kSpaceSymbol))
    spaced = kSpaceSymbol;
  for (const char c : stretch) {
    if (c == ' ') {
      spaced += kSpaceSymbol;
    } else {
      spaced += c;
    }
  }
  return spaced;
}

void split_words(const Metaspace& metaspace,
                 std::string_view text,
                 const std::function<void(std::string_view)>& take_word) {
  while (metaspace.splits && !text.empty()) {
    const size_t end = text.find(kSpaceSymbol, 1);
    if (end == std::string_view::npos) break;
    take_word(text.substr(0, end));
    text.remove_prefix(end);
  }
  if (!text.empty()) take_word(text);
}

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

Bpe::Rules::Rules(BpeDefinition given)
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

void Bpe::Rules::index_tokens() {
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

void Bpe::Rules::index_pieces() {
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

/// Merges the bytes or characters of pieces and remembers the outcome. One thread at a time.
class Bpe::Encoder {
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
  int64_t lay_out_bytes(const Rules& rules, std::string_view piece);
  int64_t lay_out_characters(const Rules& rules, std::string_view piece);
  void push(int32_t id);
  void add_candidate(const Rules& rules, int32_t position);
  void merge(const Rules& rules);

  std::vector<Symbol> symbols_;
  std::priority_queue<Candidate> candidates_;
  TextMap<std::vector<int32_t>> remembered_;
};

int64_t Bpe::Encoder::encode_piece(const Rules& rules,
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

int64_t Bpe::Encoder::lay_out(const Rules& rules, std::string_view piece) {
  require(piece.size() < size_t{1} << 31, "a piece of pre-tokenised text exceeds 2 GiB");
  symbols_.clear();
  const int64_t num_dropped =
      rules.definition.byte_level ? lay_out_bytes(rules, piece) : lay_out_characters(rules, piece);
  if (!symbols_.empty()) symbols_.back().next = -1;
  return num_dropped;
}

void Bpe::Encoder::push(int32_t id) {
  const auto position = static_cast<int32_t>(symbols_.size());
  symbols_.push_back({id, position - 1, position + 1});
}

int64_t Bpe::Encoder::lay_out_bytes(const Rules& rules, std::string_view piece) {
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
int64_t Bpe::Encoder::lay_out_characters(const Rules& rules, std::string_view piece) {
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

void Bpe::Encoder::add_candidate(const Rules& rules, int32_t position) {
  if (position < 0) return;
  const Symbol& left = symbols_[static_cast<size_t>(position)];
  if (left.next < 0) return;
  const auto found =
      rules.merges.find(pair_key(left.id, symbols_[static_cast<size_t>(left.next)].id));
  if (found == rules.merges.end()) return;
  candidates_.push({found->second.rank, position, found->second.result});
}

void Bpe::Encoder::merge(const Rules& rules) {
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
struct Bpe::EncoderPool {
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

Bpe::Bpe(BpeDefinition definition)
    : rules_(std::make_unique<Rules>(std::move(definition))),
      encoders_(std::make_unique<EncoderPool>()) {}

Bpe::~Bpe() = default;

std::vector<int32_t> Bpe::encode(std::string_view text) const {
  std::string replaced;
  if (find_invalid_utf8(text) < text.size()) text = replaced = replace_invalid_utf8(text);
  std::unique_ptr<Encoder> encoder = encoders_->take();
  std::vector<int32_t> ids;
  int64_t num_dropped = 0;
  const auto take_id = [&](int32_t id) { ids.push_back(id); };
  const auto take_piece = [&](std::string_view piece) {
    num_dropped += encoder->encode_piece(*rules_, piece, &ids);
  };
  const auto take_text = [&](std::string_view stretch) {
    const bool first = stretch.data() == text.data();
    if (rules_->definition.normalizer.empty()) {
      encode_stretch(stretch, first, take_piece, take_id);
    } else {
      encode_stretch(normalize(rules_->definition.normalizer, stretch), first, take_piece, take_id);
    }
  };
  rules_->added_tokens.split(text, take_text, take_id);
  encoders_->give_back(std::move(encoder));
  if (num_dropped > 0 && !encoders_->warned_of_drops.exchange(true)) {
    const auto& files = rules_->definition.files;
    log::warning(concat(files.empty() ? "tokenizer" : files.front().string(),
                        ": ",
                        num_dropped,
                        " byte(s) of a text have no token and were dropped, as "
                        "Hugging Face does; said once"));
  }
  return ids;
}

void Bpe::encode_stretch(std::string_view normalized,
                         bool first,
                         const std::function<void(std::string_view)>& take_piece,
                         const std::function<void(int32_t)>& take_id) const {
  const auto take_text = [&](std::string_view stretch) {
    if (!rules_->definition.metaspace) {
      rules_->pre_tokenizer.split(stretch, take_piece);
      return;
    }
    const bool at_start = first && stretch.data() == normalized.data();
    const std::string spaced = with_metaspace(*rules_->definition.metaspace, stretch, at_start);
    split_words(*rules_->definition.metaspace, spaced, [&](std::string_view word) {
      rules_->pre_tokenizer.split(word, take_piece);
    });
  };
  rules_->added_tokens.split_normalized(normalized, take_text, take_id);
}

std::string Bpe::decode(const std::vector<int32_t>& ids) const {
  std::string text;
  if (rules_->definition.byte_level) {
    for (const int32_t id : ids) text += piece(id).text;
    return text;
  }
  StreamDecoder decoder(*this);
  for (const int32_t id : ids) text += decoder.add(id);
  text += decoder.finish();
  return text;
}

TokenPiece Bpe::piece(int32_t id) const {
  if (id < 0) throw DataError(concat("token id ", id, " is negative"));
  if (id >= vocab_size()) return {};
  return rules_->pieces[static_cast<size_t>(id)];
}

TextRules Bpe::text_rules() const {
  return rules_->definition.text_rules;
}

int64_t Bpe::vocab_size() const {
  return std::ssize(rules_->pieces);
}

std::optional<int32_t> Bpe::end_of_document() const {
  return rules_->end_of_document;
}

std::optional<int32_t> Bpe::begin_of_text() const {
  return rules_->definition.begin_of_text;
}

bool Bpe::is_special(int32_t id) const {
  return rules_->definition.special.contains(id);
}

std::string Bpe::hash() const {
  return rules_->hash;
}

std::vector<std::filesystem::path> Bpe::files() const {
  return rules_->definition.files;
}

}  // namespace t2r::data
