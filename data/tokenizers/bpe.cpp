#include "data/tokenizers/bpe.h"

#include <atomic>
#include <mutex>
#include <utility>

#include "base/error.h"
#include "base/log.h"
#include "data/tokenizers/bpe_encoder.h"
#include "data/tokenizers/bpe_rules.h"
#include "data/tokenizers/stream_decoder.h"
#include "data/unicode/normalizer.h"
#include "data/unicode/utf8.h"

namespace t2r::data {
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

}  // namespace

/// Encoders that no call uses at the moment, so that what they remember serves later calls.
struct Bpe::EncoderPool {
  std::unique_ptr<BpeEncoder> take() {
    const std::lock_guard lock(mutex);
    if (idle.empty()) return std::make_unique<BpeEncoder>();
    std::unique_ptr<BpeEncoder> encoder = std::move(idle.back());
    idle.pop_back();
    return encoder;
  }

  void give_back(std::unique_ptr<BpeEncoder> encoder) {
    const std::lock_guard lock(mutex);
    idle.push_back(std::move(encoder));
  }

  std::mutex mutex;
  std::vector<std::unique_ptr<BpeEncoder>> idle;
  std::atomic<bool> warned_of_drops = false;
};

Bpe::Bpe(BpeDefinition definition)
    : rules_(std::make_unique<BpeRules>(std::move(definition))),
      encoders_(std::make_unique<EncoderPool>()) {}

Bpe::~Bpe() = default;

std::vector<int32_t> Bpe::encode(std::string_view text) const {
  std::string replaced;
  if (find_invalid_utf8(text) < text.size()) text = replaced = replace_invalid_utf8(text);
  std::unique_ptr<BpeEncoder> encoder = encoders_->take();
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
