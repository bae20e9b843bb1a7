#pragma once

#include <cstddef>
#include <string>
#include <string_view>

namespace t2r::data {

/// One step through a text that should be UTF-8.
struct Utf8Step {
  char32_t code_point = 0;  ///< U+FFFD where the bytes are not valid
  size_t num_bytes = 0;     ///< 1..4; of invalid bytes, the maximal subpart that is replaced as one
  bool valid = false;
};

/// The code point that starts at `offset`, which is below text.size().
///
/// Surrogates, overlong forms and values above U+10FFFF are invalid. Invalid bytes are taken as
/// maximal subparts, so that replacing each by U+FFFD gives what Python's
/// bytes.decode("utf-8", errors="replace") gives.
/// Source: Unicode Standard, section 3.9, table 3-7 and "U+FFFD Substitution of Maximal Subparts"
Utf8Step read_utf8(std::string_view text, size_t offset);

/// Offset of the first invalid byte; text.size() if there is none.
size_t find_invalid_utf8(std::string_view text);

/// `text` with every maximal subpart of invalid bytes replaced by U+FFFD.
std::string replace_invalid_utf8(std::string_view text);

/// Appends `code_point`, a Unicode scalar value, as UTF-8.
void append_utf8(char32_t code_point, std::string* text);

/// Whether Unicode gives `code_point` the White_Space property (25 code points, stable since 6.3).
bool is_white_space(char32_t code_point);

}  // namespace t2r::data
