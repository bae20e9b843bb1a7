#include "data/unicode/pattern_reader.h"

#include <algorithm>
#include <utility>

#include "base/error.h"
#include "base/quoted_name.h"
#include "data/unicode/utf8.h"

namespace t2r::data {
namespace {

constexpr size_t kMaxPatternBytes = 1 << 16;
constexpr int kMaxDepth = 50;

int hex_value(char32_t c) {
  if (is_ascii_digit(c)) return static_cast<int>(c - '0');
  if (c >= 'a' && c <= 'f') return static_cast<int>(c - 'a' + 10);
  if (c >= 'A' && c <= 'F') return static_cast<int>(c - 'A' + 10);
  return -1;
}

}  // namespace

PatternReader::PatternReader(std::string_view pattern) : pattern_(pattern) {
  if (pattern.size() > kMaxPatternBytes) {
    throw DataError(concat(
        "pre-tokenizer pattern of ", pattern.size(), " bytes; allowed: up to ", kMaxPatternBytes));
  }
  const size_t invalid = find_invalid_utf8(pattern);
  if (invalid < pattern.size()) {
    position_ = invalid;
    refuse("bytes that are not UTF-8");
  }
  // With characters beyond ASCII the text must stay as it is: see PatternTranslation.
  spells_space_out_ = std::ranges::any_of(pattern, [](char c) { return (c & 0x80) != 0; }) ||
                      pattern.find("\\u") != std::string_view::npos ||
                      pattern.find("\\x{") != std::string_view::npos;
}

void PatternReader::refuse(const std::string& what) const {
  throw DataError(concat("pre-tokenizer pattern ",
                         quoted_name(pattern_),
                         ": ",
                         what,
                         " at byte ",
                         position_,
                         " is not supported"));
}

char32_t PatternReader::take_character() {
  if (at_end()) refuse("an end in the middle");
  const Utf8Step step = read_utf8(pattern_, position_);
  position_ += step.num_bytes;
  return step.code_point;
}

void PatternReader::enter() {
  if (++depth_ > kMaxDepth) refuse(concat("nesting deeper than ", kMaxDepth));
}

void PatternReader::check_folding(char32_t first, char32_t last) const {
  if (ignore_case_ && (first >= 0x80 || last >= 0x80))
    refuse("a character beyond ASCII under (?i)");
}

void PatternReader::note_property(std::string_view what) {
  if (ignore_case_) refuse(concat(what, " under (?i)"));
  result_.reads_properties = true;
}

std::optional<CharacterSet> PatternReader::take_set_escape(bool in_class) {
  CharacterSet set;
  if (take("p")) return property(false);
  if (take("P")) return property(true);
  const size_t letter = position_;
  if (take("d") || take("D")) {
    note_property(R"(\d)");
    set.add_members(R"(\p{Nd})");
  } else if (take("s") || take("S")) {
    if (!spells_space_out_) result_.reads_properties = true;
    set.add_members(spells_space_out_ ? kSpaceMembers : R"(\s)");
  } else if (take("w") || take("W")) {
    note_property(R"(\w)");
    result_.differs = true;
    set.add_members(kWordMembers);
    if (!in_class) set.add_members(kWordBeyondClasses);
  } else if (take("h") || take("H")) {
    result_.differs = true;
    set.add_members(kHexDigitMembers);
  } else {
    return std::nullopt;
  }
  if (pattern_[letter] < 'a') set.negate();
  return set;
}

CharacterSet PatternReader::property(bool negated) {
  if (!take("{")) refuse(R"(\p without {)");
  if (take("^")) negated = !negated;
  const size_t end = pattern_.find('}', position_);
  if (end == std::string_view::npos) refuse(R"(\p without })");
  const std::string_view name = pattern_.substr(position_, end - position_);
  const auto members = find_property(name);
  if (!members) refuse(concat(R"(the property )", quoted_name(name)));
  note_property(R"(\p{...})");
  position_ = end + 1;
  CharacterSet set;
  set.add_members(*members);
  if (negated) set.negate();
  return set;
}

char32_t PatternReader::take_hex(size_t min_digits, size_t max_digits) {
  char32_t value = 0;
  size_t num_digits = 0;
  while (num_digits < max_digits && !at_end() &&
         hex_value(static_cast<unsigned char>(pattern_[position_])) >= 0) {
    value = value * 16 +
            static_cast<char32_t>(hex_value(static_cast<unsigned char>(pattern_[position_++])));
    ++num_digits;
  }
  if (num_digits < min_digits) refuse("an escape with too few digits");
  if (value > 0x10FFFF || (value >= 0xD800 && value <= 0xDFFF)) refuse("this code point");
  return value;
}

char32_t PatternReader::take_code_point_escape() {
  if (take("x{")) {
    const char32_t value = take_hex(1, 8);
    if (!take("}")) refuse(R"(\x{ without })");
    return value;
  }
  if (take("x")) {
    const char32_t value = take_hex(1, 2);
    if (value >= 0x80) refuse(R"(a byte of a character (\x80 and above); write \x{...})");
    return value;
  }
  if (take("u")) return take_hex(4, 4);
  const char32_t c = take_character();
  constexpr std::pair<char, char32_t> kControls[] = {
      {'t', 0x09}, {'n', 0x0A}, {'v', 0x0B}, {'f', 0x0C}, {'r', 0x0D}, {'a', 0x07}, {'e', 0x1B}};
  for (const auto& [letter, value] : kControls) {
    if (c == static_cast<char32_t>(letter)) return value;
  }
  if (is_ascii_letter(c) || is_ascii_digit(c)) {
    --position_;
    refuse(concat("\\", static_cast<char>(c)));
  }
  return c;
}

CharacterSet PatternReader::character_class() {
  enter();
  take("[");
  const bool negated = take("^");
  CharacterSet set = class_union();
  while (take("&&")) {
    result_.differs = true;
    set.intersect(class_union());
  }
  if (!take("]")) refuse("a [ without ]");
  if (negated) set.negate();
  leave();
  return set;
}

std::optional<CharacterSet> PatternReader::take_posix_class() {
  const size_t start = position_;
  if (!take("[:")) return std::nullopt;
  const bool negated = take("^");
  const size_t end = pattern_.find(":]", position_);
  const auto members = end == std::string_view::npos
                           ? std::nullopt
                           : find_property(pattern_.substr(position_, end - position_));
  if (!members) {
    position_ = start;
    refuse("[: that begins no known class");
  }
  note_property("[:...:]");
  result_.differs = true;
  position_ = end + 2;
  CharacterSet set;
  set.add_members(*members);
  if (negated) set.negate();
  return set;
}

/// One character of a class, or a set that stands for several.
char32_t PatternReader::take_class_character(bool* is_set, CharacterSet* set) {
  *is_set = false;
  if (!take("\\")) return take_character();
  if (auto found = take_set_escape(true)) {
    *is_set = true;
    *set = std::move(*found);
    return 0;
  }
  if (take("b")) return 0x08;
  return take_code_point_escape();
}

/// What stands between [, && and ].
CharacterSet PatternReader::class_union() {
  CharacterSet all;
  // A ] at the very beginning is a character, if another ] ends the class.
  bool first = pattern_[position_ - 1] == '[' || pattern_[position_ - 1] == '^';
  while (!at_end() && !sees("&&")) {
    if (sees("]")) {
      if (!first || pattern_.find(']', position_ + 1) == std::string_view::npos) break;
    }
    first = false;
    if (auto posix = take_posix_class()) {
      all.add(*posix);
      continue;
    }
    if (sees("[")) {
      result_.differs = true;
      all.add(character_class());
      continue;
    }
    bool is_set = false;
    CharacterSet set;
    const char32_t low = take_class_character(&is_set, &set);
    if (is_set) {
      if (sees("-") && !sees("-]") && !sees("-&&")) refuse("a range that begins with a class");
      all.add(set);
      continue;
    }
    char32_t high = low;
    if (sees("-") && !sees("-]") && !sees("-&&")) {
      take("-");
      if (sees("[")) refuse("a range that ends in a class");
      high = take_class_character(&is_set, &set);
      if (is_set || high < low) refuse("this range");
    }
    check_folding(low, high);
    all.add(low, high);
  }
  if (at_end()) refuse("a [ without ]");
  return all;
}

}  // namespace t2r::data
