#include "data/pre_tokenizer.h"

#define PCRE2_CODE_UNIT_WIDTH 8
#include <pcre2.h>

#include <algorithm>
#include <array>
#include <iterator>
#include <utility>

#include "base/error.h"
#include "data/utf8.h"

namespace t2r::data {
namespace {

/// What Hugging Face's regular expressions take a code point for. kDigitOnly is kOther to them and
/// a number to Rust's char::is_numeric (Unicode 17), which the Digits pre-tokenizer asks.
enum CodePointClass { kLetter, kNumber, kOther, kDigitOnly };

struct CodePointRange {
  char32_t first;
  char32_t last;
  CodePointClass wanted;
};

/// Code points whose class depends on the Unicode version, in ascending order: those assigned after
/// Unicode 14 as letters or numbers, U+180E (a space to PCRE2's \s alone) and the stand-in
/// U+10FFFE. Source: every code point asked of tokenizers 0.23.3, PCRE2 10.42 and Unicode 18's data
constexpr CodePointRange kExceptions[] = {
    // clang-format off
    {0x558, 0x558, kOther}, {0x58B, 0x58C, kOther}, {0x88F, 0x88F, kOther},
    {0xC5C, 0xC5C, kOther}, {0xCDC, 0xCDC, kOther}, {0x180E, 0x180E, kOther},
    {0x1C89, 0x1C8A, kLetter}, {0x208F, 0x208F, kOther}, {0x209D, 0x209F, kOther},
    {0xA7CB, 0xA7CD, kLetter}, {0xA7CE, 0xA7CF, kOther}, {0xA7D2, 0xA7D2, kOther},
    {0xA7D4, 0xA7D4, kOther}, {0xA7DA, 0xA7DC, kLetter}, {0xA7DD, 0xA7DD, kOther},
    {0xA7E2, 0xA7E2, kOther}, {0xA7F1, 0xA7F1, kOther}, {0xAB6C, 0xAB6D, kOther},
    {0x105C0, 0x105F3, kLetter}, {0x107BB, 0x107BF, kOther}, {0x10940, 0x10959, kOther},
    {0x10D40, 0x10D49, kNumber}, {0x10D4A, 0x10D65, kLetter}, {0x10D6F, 0x10D85, kLetter},
    {0x10EC2, 0x10EC4, kLetter}, {0x10EC5, 0x10EC7, kOther}, {0x10ED9, 0x10EEE, kOther},
    {0x1123F, 0x11240, kLetter}, {0x11380, 0x11389, kLetter}, {0x1138B, 0x1138B, kLetter},
    {0x1138E, 0x1138E, kLetter}, {0x11390, 0x113B5, kLetter}, {0x113B7, 0x113B7, kLetter},
    {0x113D1, 0x113D1, kLetter}, {0x113D3, 0x113D3, kLetter}, {0x116D0, 0x116E3, kNumber},
    {0x11B0A, 0x11B0A, kOther}, {0x11BC0, 0x11BE0, kLetter}, {0x11BF0, 0x11BF9, kNumber},
    {0x11DB0, 0x11DDB, kOther}, {0x11DE0, 0x11DE9, kDigitOnly}, {0x11DF1, 0x11DF1, kOther},
    {0x11F02, 0x11F02, kLetter}, {0x11F04, 0x11F10, kLetter}, {0x11F12, 0x11F33, kLetter},
    {0x11F50, 0x11F59, kNumber}, {0x1246F, 0x1246F, kOther}, {0x12475, 0x1247F, kOther},
    {0x12550, 0x12686, kOther}, {0x1342F, 0x1342F, kLetter}, {0x13441, 0x13446, kLetter},
    {0x13460, 0x143FA, kLetter}, {0x16100, 0x1611D, kLetter}, {0x16130, 0x16139, kNumber},
    {0x16D40, 0x16D6C, kLetter}, {0x16D70, 0x16D79, kNumber}, {0x16EA0, 0x16EB8, kOther},
    {0x16EBB, 0x16ED3, kOther}, {0x16FF2, 0x16FF3, kOther}, {0x16FF4, 0x16FF6, kDigitOnly},
    {0x187F8, 0x187FF, kOther}, {0x18CD6, 0x18CDA, kOther}, {0x18CFF, 0x18CFF, kLetter},
    {0x18D09, 0x18D20, kOther}, {0x18D80, 0x18DF2, kOther}, {0x18E00, 0x19191, kOther},
    {0x191A0, 0x191D2, kOther}, {0x1B123, 0x1B128, kOther}, {0x1B132, 0x1B132, kLetter},
    {0x1B155, 0x1B155, kLetter}, {0x1B168, 0x1B168, kOther}, {0x1CCF0, 0x1CCF9, kNumber},
    {0x1D2C0, 0x1D2D3, kNumber}, {0x1D6A6, 0x1D6A6, kOther}, {0x1DF1F, 0x1DF24, kOther},
    {0x1DF25, 0x1DF2A, kLetter}, {0x1DF2B, 0x1DF81, kOther}, {0x1DF90, 0x1DF96, kOther},
    {0x1DFCD, 0x1DFFF, kOther}, {0x1E030, 0x1E06D, kLetter}, {0x1E4D0, 0x1E4EB, kLetter},
    {0x1E4F0, 0x1E4F9, kNumber}, {0x1E5D0, 0x1E5ED, kLetter}, {0x1E5F0, 0x1E5F0, kLetter},
    {0x1E5F1, 0x1E5FA, kNumber}, {0x1E6C0, 0x1E6DE, kOther}, {0x1E6E0, 0x1E6E2, kOther},
    {0x1E6E4, 0x1E6E5, kOther}, {0x1E6E7, 0x1E6ED, kOther}, {0x1E6F0, 0x1E6F4, kOther},
    {0x1E6FE, 0x1E6FF, kOther}, {0x2B739, 0x2B739, kLetter}, {0x2B73A, 0x2B73F, kOther},
    {0x2B81E, 0x2B81E, kOther}, {0x2CEA2, 0x2CEAD, kOther}, {0x2EBF0, 0x2EE5D, kLetter},
    {0x31350, 0x323AF, kLetter}, {0x323B0, 0x33479, kOther}, {0x3D000, 0x3FC3F, kOther},
    {0x10FFFE, 0x10FFFE, kOther},
    // clang-format on
};

/// Code points of 2, 3 and 4 bytes (one byte is never in dispute) by class, of equal length so that
/// offsets stay. Their class is the same in every Unicode version, and they have no case.
constexpr char32_t kStandIns[4][3] = {{0x5D0, 0x4E00, 0x20000},   // kLetter
                                      {0xB2, 0x3007, 0x1D7CE},    // kNumber
                                      {0xA7, 0x2022, 0x1F600},    // kOther
                                      {0xA7, 0x2022, 0x10FFFE}};  // kDigitOnly

const CodePointRange* find_exception(char32_t code_point) {
  const auto* range = std::lower_bound(
      std::begin(kExceptions),
      std::end(kExceptions),
      code_point,
      [](const CodePointRange& candidate, char32_t value) { return candidate.last < value; });
  return range != std::end(kExceptions) && range->first <= code_point ? range : nullptr;
}

/// `text` itself, or a copy in `storage` with stand-ins for the code points in dispute.
std::string_view replace_exceptions(std::string_view text, std::string* storage) {
  size_t copied = 0;
  for (size_t offset = 0; offset < text.size();) {
    const auto first = static_cast<unsigned char>(text[offset]);
    // The first exception is U+0558, whose lead byte is 0xD5.
    if (first < 0xD5) {
      ++offset;
      continue;
    }
    const Utf8Step step = read_utf8(text, offset);
    if (const CodePointRange* range = find_exception(step.code_point)) {
      storage->append(text, copied, offset - copied);
      append_utf8(kStandIns[range->wanted][step.num_bytes - 2], storage);
      copied = offset + step.num_bytes;
    }
    offset += step.num_bytes;
  }
  if (copied == 0) return text;
  storage->append(text, copied);
  return *storage;
}

std::string describe_pcre2_error(int code) {
  std::array<PCRE2_UCHAR, 256> message{};
  pcre2_get_error_message(code, message.data(), message.size());
  return reinterpret_cast<const char*>(message.data());
}

class Regex {
 public:
  explicit Regex(std::string pattern) : pattern_(std::move(pattern)) {
    int error = 0;
    PCRE2_SIZE position = 0;
    code_.reset(pcre2_compile(reinterpret_cast<PCRE2_SPTR>(pattern_.data()),
                              pattern_.size(),
                              PCRE2_UTF | PCRE2_UCP,
                              &error,
                              &position,
                              nullptr));
    if (!code_) {
      throw DataError(concat("pre-tokenizer pattern \"",
                             pattern_,
                             "\" does not compile at byte ",
                             position,
                             ": ",
                             describe_pcre2_error(error)));
    }
    // Without JIT (not built in, or memory that may not be executed) PCRE2 interprets instead.
    pcre2_jit_compile(code_.get(), PCRE2_JIT_COMPLETE);
  }

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

  bool find_next(std::string_view text, size_t offset, pcre2_match_data* match) const {
    // The text is known to be valid; checking it again at every match would be quadratic.
    const int result = pcre2_match(code_.get(),
                                   reinterpret_cast<PCRE2_SPTR>(text.data()),
                                   text.size(),
                                   offset,
                                   PCRE2_NO_UTF_CHECK,
                                   match,
                                   nullptr);
    if (result == PCRE2_ERROR_NOMATCH) return false;
    if (result < 0) {
      throw DataError(concat("pre-tokenizer pattern \"",
                             pattern_,
                             "\" failed at byte ",
                             offset,
                             " of a text of ",
                             text.size(),
                             ": ",
                             describe_pcre2_error(result)));
    }
    return true;
  }

  std::string pattern_;
  std::unique_ptr<pcre2_code, Deleter> code_;
};

}  // namespace

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
    stages[stage].find_cuts(shadow, take_cut);
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
  chain_->cut(0, text, replace_exceptions(text, &storage), take_piece);
}

const std::vector<std::string>& PreTokenizer::patterns() const {
  return chain_->patterns;
}

}  // namespace t2r::data
