#include "data/tokenizers/pre_tokenizer.h"

#define PCRE2_CODE_UNIT_WIDTH 8
#include <pcre2.h>

#include <algorithm>
#include <array>
#include <utility>

#include "base/error.h"
#include "base/quoted_name.h"
#include "data/unicode/pattern.h"
#include "data/unicode/unicode_version.h"
#include "data/unicode/utf8.h"

namespace t2r::data {
namespace {

std::string describe_pcre2_error(int code) {
  std::array<PCRE2_UCHAR, 256> message{};
  pcre2_get_error_message(code, message.data(), message.size());
  return reinterpret_cast<const char*>(message.data());
}

PatternTranslation read_pattern(const std::string& pattern) {
  // Ours are written for PCRE2.
  for (const std::string_view own : {kGpt2Pattern, kDigitPattern, kDigitRunPattern}) {
    if (pattern == own) return {.pcre2 = pattern, .reads_properties = true};
  }
  return translate_pattern(pattern);
}

class Regex {
 public:
  explicit Regex(std::string pattern) : pattern_(std::move(pattern)) {
    const PatternTranslation translation = read_pattern(pattern_);
    reads_properties_ = translation.reads_properties;
    int error = 0;
    PCRE2_SIZE position = 0;
    code_.reset(pcre2_compile(reinterpret_cast<PCRE2_SPTR>(translation.pcre2.data()),
                              translation.pcre2.size(),
                              PCRE2_UTF | PCRE2_UCP,
                              &error,
                              &position,
                              nullptr));
    if (!code_) {
      throw DataError(concat("pre-tokenizer pattern ",
                             quoted_name(pattern_),
                             " does not compile: ",
                             describe_pcre2_error(error)));
    }
    // Without JIT (not built in, or memory that may not be executed) PCRE2 interprets instead.
    pcre2_jit_compile(code_.get(), PCRE2_JIT_COMPLETE);
  }

  bool reads_properties() const { return reads_properties_; }

  /// Calls take_cut(end) at both ends of every match, in order.
  template <class TakeCut>
  void find_cuts(std::string_view text, const TakeCut& take_cut) const {
    const std::unique_ptr<pcre2_match_data, Deleter> match(pcre2_match_data_create(1, nullptr));
    require(match != nullptr, "pcre2_match_data_create: out of memory");
    size_t offset = 0;
    while (offset < text.size() && find_next(text, offset, match.get())) {
      const PCRE2_SIZE* ends = pcre2_get_ovector_pointer(match.get());
      take_cut(ends[0]);
      take_cut(ends[1]);
      offset = ends[1];
      if (ends[0] == ends[1] && offset < text.size()) offset += read_utf8(text, offset).num_bytes;
    }
  }

 private:
  struct Deleter {
    void operator()(pcre2_code* code) const { pcre2_code_free(code); }
    void operator()(pcre2_match_data* match) const { pcre2_match_data_free(match); }
  };

  int match_at(std::string_view text,
               size_t offset,
               uint32_t options,
               pcre2_match_data* match) const {
    // The text is known to be valid; checking it again at every match would be quadratic.
    return pcre2_match(code_.get(),
                       reinterpret_cast<PCRE2_SPTR>(text.data()),
                       text.size(),
                       offset,
                       PCRE2_NO_UTF_CHECK | options,
                       match,
                       nullptr);
  }

  bool find_next(std::string_view text, size_t offset, pcre2_match_data* match) const {
    int result = match_at(text, offset, 0, match);
    // A repeated group of a long run fills the compiled pattern's stack; the interpreter uses the
    // heap.
    if (result == PCRE2_ERROR_JIT_STACKLIMIT) result = match_at(text, offset, PCRE2_NO_JIT, match);
    if (result == PCRE2_ERROR_NOMATCH) return false;
    if (result < 0) {
      throw DataError(concat("pre-tokenizer pattern ",
                             quoted_name(pattern_),
                             " failed at byte ",
                             offset,
                             " of a text of ",
                             text.size(),
                             ": ",
                             describe_pcre2_error(result)));
    }
    return true;
  }

  std::string pattern_;
  bool reads_properties_ = false;
  std::unique_ptr<pcre2_code, Deleter> code_;
};

}  // namespace

std::string pattern_identity(const std::string& pattern) {
  return read_pattern(pattern).differs ? pattern + " (Oniguruma)" : pattern;
}

struct PreTokenizer::Chain {
  std::vector<std::string> patterns;
  std::vector<Regex> stages;

  /// Cuts `shadow`, the text with stand-ins, at `stage` and all later ones; gives pieces of `text`.
  void cut(size_t stage,
           std::string_view text,
           std::string_view shadow,
           const std::function<void(std::string_view)>& take_piece) const {
    if (text.empty()) return;
    if (stage == stages.size()) {
      take_piece(text);
      return;
    }
    size_t begin = 0;
    const auto take_cut = [&](size_t end) {
      cut(stage + 1,
          text.substr(begin, end - begin),
          shadow.substr(begin, end - begin),
          take_piece);
      begin = end;
    };
    stages[stage].find_cuts(stages[stage].reads_properties() ? shadow : text, take_cut);
    take_cut(text.size());
  }
};

PreTokenizer::PreTokenizer(std::vector<std::string> patterns) : chain_(std::make_unique<Chain>()) {
  for (const std::string& pattern : patterns) chain_->stages.emplace_back(pattern);
  chain_->patterns = std::move(patterns);
}

PreTokenizer::~PreTokenizer() = default;
PreTokenizer::PreTokenizer(PreTokenizer&&) noexcept = default;
PreTokenizer& PreTokenizer::operator=(PreTokenizer&&) noexcept = default;

void PreTokenizer::split(std::string_view text,
                         const std::function<void(std::string_view)>& take_piece) const {
  std::string storage;
  chain_->cut(0, text, replace_version_dependent(text, &storage), take_piece);
}

const std::vector<std::string>& PreTokenizer::patterns() const {
  return chain_->patterns;
}

}  // namespace t2r::data
