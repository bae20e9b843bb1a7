#pragma once

#include <string>
#include <string_view>

namespace t2r::data {

/// `text` itself, or a copy in `storage` of the same length in which every code point whose
/// properties depend on the Unicode version is replaced by a stand-in: one of the same number of
/// bytes that every version from 14 on takes for what Unicode 16 takes the original for.
///
/// So a pattern's \p{...} covers what it covers in Hugging Face tokenizers 0.23 (Unicode 16),
/// whatever version PCRE2 has: general category and the properties Alphabetic, Uppercase and
/// Lowercase are kept; of scripts, Han, Hiragana, Katakana, Latin letters and Arabic letters.
/// @param text  valid UTF-8
std::string_view replace_version_dependent(std::string_view text, std::string* storage);

/// Stands for the numbers that Rust's char::is_numeric (Unicode 17) knows and Hugging Face's
/// regular expressions do not.
inline constexpr std::string_view kDigitOnlyStandIn = "\xF4\x8F\xBF\xBE";  // U+10FFFE

}  // namespace t2r::data
