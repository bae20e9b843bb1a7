#pragma once

#include <cstddef>
#include <optional>
#include <string>
#include <string_view>

#include "data/unicode/character_set.h"
#include "data/unicode/pattern.h"

namespace t2r::data {

/// Outside of classes Oniguruma's \w knows these too (its table of the first 256 code points).
inline constexpr std::string_view kWordBeyondClasses = R"(\xB2\xB3\xB9\xBC-\xBE)";

inline bool is_ascii_letter(char32_t c) {
  return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z');
}

inline bool is_ascii_digit(char32_t c) {
  return c >= '0' && c <= '9';
}

/// The part of translate_pattern() that reads characters and sets of them: escapes and classes.
/// Every function reads on from the position that the one before reached, and refuses what it
/// cannot translate with a DataError.
class PatternReader {
 protected:
  /// @throws DataError  if the pattern is too long or not UTF-8
  explicit PatternReader(std::string_view pattern);

  [[noreturn]] void refuse(const std::string& what) const;

  bool at_end() const { return position_ == pattern_.size(); }
  bool sees(std::string_view text) const { return pattern_.substr(position_).starts_with(text); }
  bool take(std::string_view text) {
    if (!sees(text)) return false;
    position_ += text.size();
    return true;
  }
  char32_t take_character();

  /// One more open group or class; refuses a depth that would be recursion without end.
  void enter();
  void leave() { --depth_; }

  /// A class with its brackets.
  CharacterSet character_class();
  /// Behind a backslash: \d \D \s \S \w \W \h \H \p{...} \P{...}
  std::optional<CharacterSet> take_set_escape(bool in_class);
  /// Behind a backslash: one character.
  char32_t take_code_point_escape();

  /// Refuses what (?i) would fold otherwise.
  void check_folding(char32_t first, char32_t last) const;
  /// The pattern asks for properties of code points.
  void note_property(std::string_view what);

  std::string_view pattern_;
  size_t position_ = 0;
  bool ignore_case_ = false;
  PatternTranslation result_;

 private:
  CharacterSet property(bool negated);
  CharacterSet class_union();
  std::optional<CharacterSet> take_posix_class();
  char32_t take_class_character(bool* is_set, CharacterSet* set);
  char32_t take_hex(size_t min_digits, size_t max_digits);

  int depth_ = 0;
  bool spells_space_out_ = false;
};

}  // namespace t2r::data
