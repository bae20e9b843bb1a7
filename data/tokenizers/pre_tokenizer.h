#pragma once

#include <functional>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

namespace t2r::data {

/// GPT-2's pre-tokenisation, which ByteLevel(use_regex=true) stands for.
/// Source: openai/gpt-2 src/encoder.py; huggingface/tokenizers pre_tokenizers/byte_level.rs
inline constexpr std::string_view kGpt2Pattern =
    R"('s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+)";

/// Digits(individual_digits=true) and Digits(individual_digits=false). U+10FFFE stands for the
/// numbers that Rust's char::is_numeric knows and Hugging Face's regular expressions do not.
inline constexpr std::string_view kDigitPattern = R"([\p{N}\x{10FFFE}])";
inline constexpr std::string_view kDigitRunPattern = R"([\p{N}\x{10FFFE}]+)";

/// What a tokenizer's hash takes for a pattern: the pattern itself, with a mark where PCRE2 alone
/// would match something else (what t2r did until it translated patterns).
std::string pattern_identity(const std::string& pattern);

/// Cuts a text into the pieces that byte-pair merges never cross.
///
/// A chain of stages; each cuts every piece of the stage before at the matches of its pattern, and
/// matches and the text between them are pieces alike (Hugging Face: behaviour "Isolated").
/// Patterns are Hugging Face's (translate_pattern()), but for the three above. Properties cover the
/// code points that they cover in Hugging Face tokenizers 0.23 (Unicode 16), whatever version PCRE2
/// has: replace_version_dependent().
class PreTokenizer {
 public:
  /// @param patterns  one per stage, in order; none means that a text is one piece
  /// @throws DataError  if a pattern is not supported or does not compile; names pattern and cause
  explicit PreTokenizer(std::vector<std::string> patterns);
  ~PreTokenizer();
  PreTokenizer(PreTokenizer&&) noexcept;
  PreTokenizer& operator=(PreTokenizer&&) noexcept;

  /// Calls `take_piece` for every piece, in order; pieces are never empty, view `text` and together
  /// are `text`. May be called from several threads.
  /// @param text  valid UTF-8
  /// @throws DataError  if a pattern exceeds PCRE2's limits on this text
  void split(std::string_view text, const std::function<void(std::string_view)>& take_piece) const;

  const std::vector<std::string>& patterns() const;

 private:
  struct Chain;
  std::unique_ptr<Chain> chain_;
};

}  // namespace t2r::data
