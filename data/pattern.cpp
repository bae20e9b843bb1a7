#include "data/pattern.h"

#include <algorithm>
#include <array>
#include <cstdint>
#include <optional>
#include <utility>

#include "base/error.h"
#include "base/quoted_name.h"
#include "data/character_set.h"
#include "data/utf8.h"

namespace t2r::data {
namespace {

constexpr size_t kMaxPatternBytes = 1 << 16;
constexpr int kMaxDepth = 50;
constexpr int64_t kMaxRepeats = 65535;  // PCRE2's

/// Outside of classes Oniguruma's \w knows these too (its table of the first 256 code points).
constexpr std::string_view kWordBeyondClasses = R"(\xB2\xB3\xB9\xBC-\xBE)";

/// Pairs of ASCII letters that one character folds to: under (?i), "ss" matches U+00DF.
constexpr std::array<std::string_view, 5> kFoldingPairs = {"ss", "st", "ff", "fi", "fl"};

bool is_ascii_letter(char32_t c) {
  return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z');
}

bool is_ascii_digit(char32_t c) {
  return c >= '0' && c <= '9';
}

int hex_value(char32_t c) {
  if (is_ascii_digit(c)) return static_cast<int>(c - '0');
  if (c >= 'a' && c <= 'f') return static_cast<int>(c - 'a' + 10);
  if (c >= 'A' && c <= 'F') return static_cast<int>(c - 'A' + 10);
  return -1;
}

std::string literal_of(char32_t c) {
  std::string text;
  if (c < 0x80 && !is_ascii_letter(c) && !is_ascii_digit(c)) {
    if (c < 0x20 || c == 0x7F) return concat("\\x{", std::hex, static_cast<unsigned>(c), "}");
    if (c != ' ') text.push_back('\\');
  }
  append_utf8(c, &text);
  return text;
}

/// One pattern from left to right, by recursive descent; what it returns is PCRE2.
class Translator {
 public:
  explicit Translator(std::string_view pattern) : pattern_(pattern) {
    if (pattern.size() > kMaxPatternBytes) {
      throw DataError(concat("pre-tokenizer pattern of ",
                             pattern.size(),
                             " bytes; allowed: up to ",
                             kMaxPatternBytes));
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

  PatternTranslation translate() {
    result_.pcre2 = alternatives();
    if (!at_end()) refuse("a ) without (");
    return std::move(result_);
  }

 private:
  [[noreturn]] void refuse(const std::string& what) const {
    throw DataError(concat("pre-tokenizer pattern ",
                           quoted_name(pattern_),
                           ": ",
                           what,
                           " at byte ",
                           position_,
                           " is not supported"));
  }

  bool at_end() const { return position_ == pattern_.size(); }
  bool sees(std::string_view text) const { return pattern_.substr(position_).starts_with(text); }
  bool take(std::string_view text) {
    if (!sees(text)) return false;
    position_ += text.size();
    return true;
  }
  char32_t take_character() {
    if (at_end()) refuse("an end in the middle");
    const Utf8Step step = read_utf8(pattern_, position_);
    position_ += step.num_bytes;
    return step.code_point;
  }

  std::string alternatives();
  std::string sequence();
  std::string atom();
  std::string group();
  std::string named_group();
  std::string options_group();
  std::string quantified(std::string atom);
  std::optional<std::string> take_interval(bool* fixed);
  std::optional<int64_t> take_number();

  std::string escape();
  std::string literal(char32_t c);
  std::optional<CharacterSet> take_set_escape(bool in_class);
  std::optional<std::string> take_anchor_escape();
  char32_t take_code_point_escape();
  char32_t take_hex(size_t min_digits, size_t max_digits);
  CharacterSet property(bool negated);

  CharacterSet character_class();
  CharacterSet class_union();
  std::optional<CharacterSet> take_posix_class();
  char32_t take_class_character(bool* is_set, CharacterSet* set);
  void check_folding(char32_t first, char32_t last) const;
  void note_property(std::string_view what);

  std::string_view pattern_;
  size_t position_ = 0;
  int depth_ = 0;
  bool ignore_case_ = false;
  bool dot_takes_line_feed_ = false;
  bool spells_space_out_ = false;
  bool can_repeat_ = false;        ///< the last atom is one that a quantifier may follow
  bool may_be_empty_ = false;      ///< the last part may match the empty text
  char32_t previous_literal_ = 0;  ///< directly before, for kFoldingPairs
  PatternTranslation result_;
};

std::string Translator::alternatives() {
  if (++depth_ > kMaxDepth) refuse(concat("nesting deeper than ", kMaxDepth));
  std::string all = sequence();
  bool may_be_empty = may_be_empty_;
  while (take("|")) {
    all += "|" + sequence();
    may_be_empty = may_be_empty || may_be_empty_;
  }
  may_be_empty_ = may_be_empty;
  --depth_;
  return all;
}

std::string Translator::sequence() {
  std::string all;
  bool may_be_empty = true;
  previous_literal_ = 0;
  while (!at_end() && !sees("|") && !sees(")")) {
    can_repeat_ = true;
    may_be_empty_ = false;
    const std::string next = atom();
    all += can_repeat_ ? quantified(next) : next;
    may_be_empty = may_be_empty && may_be_empty_;
  }
  may_be_empty_ = may_be_empty;
  previous_literal_ = 0;
  return all;
}

std::string Translator::atom() {
  if (take("(")) return group();
  if (sees("[")) {
    previous_literal_ = 0;
    return character_class().pattern();
  }
  if (take("\\")) return escape();
  if (take(".")) {
    previous_literal_ = 0;
    return dot_takes_line_feed_ ? "(?s:.)" : R"([^\n])";
  }
  if (sees("*") || sees("+") || sees("?")) refuse("a quantifier without anything before it");
  if (take("^") || sees("$")) {
    can_repeat_ = false;
    may_be_empty_ = true;
    previous_literal_ = 0;
    result_.differs = true;
    return take("$") ? R"((?=\n|\z))" : R"((?:\A|(?<=\n)(?!\z)))";
  }
  return literal(take_character());
}

std::string Translator::literal(char32_t c) {
  if (ignore_case_) {
    check_folding(c, c);
    if (is_ascii_letter(c) && is_ascii_letter(previous_literal_)) {
      const std::string pair = {static_cast<char>(previous_literal_ | 0x20),
                                static_cast<char>(c | 0x20)};
      if (std::ranges::find(kFoldingPairs, pair) != kFoldingPairs.end()) {
        refuse(quoted_name(pair) + " under (?i), which one character folds to as well,");
      }
    }
  }
  previous_literal_ = c;
  return literal_of(c);
}

void Translator::check_folding(char32_t first, char32_t last) const {
  if (ignore_case_ && (first >= 0x80 || last >= 0x80))
    refuse("a character beyond ASCII under (?i)");
}

void Translator::note_property(std::string_view what) {
  if (ignore_case_) refuse(concat(what, " under (?i)"));
  result_.reads_properties = true;
}

// ---- groups ----

std::string Translator::group() {
  previous_literal_ = 0;
  std::string opening = "(?:";
  if (take("?")) {
    if (take("#")) {
      while (!at_end() && !sees(")")) take_character();
      if (!take(")")) refuse("a comment without end");
      can_repeat_ = false;
      may_be_empty_ = true;
      return "";
    }
    if (take("<=")) {
      opening = "(?<=";
    } else if (take("<!")) {
      opening = "(?<!";
    } else if (take("=")) {
      opening = "(?=";
    } else if (take("!")) {
      opening = "(?!";
    } else if (take(">")) {
      opening = "(?>";
    } else if (sees("<") || sees("'")) {
      return named_group();
    } else if (!take(":")) {
      return options_group();
    }
  }
  const bool ignored_case = ignore_case_;
  const bool dot_took = dot_takes_line_feed_;
  const std::string body = alternatives();
  if (!take(")")) refuse("a ( without )");
  ignore_case_ = ignored_case;
  dot_takes_line_feed_ = dot_took;
  can_repeat_ = opening == "(?:" || opening == "(?>";
  may_be_empty_ = may_be_empty_ || !can_repeat_;
  return opening + body + ")";
}

std::string Translator::named_group() {
  const char closing = take("<") ? '>' : (take("'"), '\'');
  while (!at_end() && pattern_[position_] != closing) {
    const char32_t c = take_character();
    if (!is_ascii_letter(c) && !is_ascii_digit(c) && c != '_') refuse("this name of a group");
  }
  if (!take(std::string_view(&closing, 1))) refuse("a name without end");
  const std::string body = alternatives();
  if (!take(")")) refuse("a ( without )");
  can_repeat_ = true;
  return "(?:" + body + ")";
}

/// (?i:...), and (?i), which in Ruby's syntax groups all that follows, alternatives too.
std::string Translator::options_group() {
  const bool ignored_case = ignore_case_;
  const bool dot_took = dot_takes_line_feed_;
  const bool in_the_middle = position_ > std::string_view("(?").size();
  bool on = true;
  while (!at_end() && !sees(":") && !sees(")")) {
    if (take("-")) {
      on = false;
    } else if (take("i")) {
      ignore_case_ = on;
    } else if (take("m")) {
      dot_takes_line_feed_ = on;
    } else {
      refuse("this kind of group or option");
    }
  }
  const bool to_the_end = take(")");
  if (!to_the_end && !take(":")) refuse("a ( without )");
  result_.differs = result_.differs || (to_the_end && in_the_middle);
  const std::string opening = ignore_case_ ? "(?i:" : "(?-i:";
  const std::string body = alternatives();
  if (!to_the_end && !take(")")) refuse("a ( without )");
  ignore_case_ = ignored_case;
  dot_takes_line_feed_ = dot_took;
  can_repeat_ = !to_the_end;
  return opening + body + ")";
}

// ---- quantifiers ----

std::optional<int64_t> Translator::take_number() {
  int64_t number = 0;
  size_t num_digits = 0;
  while (!at_end() && is_ascii_digit(static_cast<unsigned char>(pattern_[position_]))) {
    number = number * 10 + (pattern_[position_++] - '0');
    ++num_digits;
    if (number > kMaxRepeats) refuse(concat("a repetition of more than ", kMaxRepeats));
  }
  return num_digits > 0 ? std::optional(number) : std::nullopt;
}

/// {n}, {n,}, {n,m} or {,m}; anything else is a literal brace, as in Ruby.
std::optional<std::string> Translator::take_interval(bool* fixed) {
  const size_t start = position_;
  if (!take("{")) return std::nullopt;
  const std::optional<int64_t> low = take_number();
  const bool comma = take(",");
  const std::optional<int64_t> high = comma ? take_number() : low;
  if (!take("}") || (!low && !high)) {
    position_ = start;
    return std::nullopt;
  }
  if (low && high && *low > *high) refuse("an interval whose ends are swapped");
  if (!low) result_.differs = true;
  *fixed = !comma;
  if (*fixed) return concat("{", *low, "}");
  return concat("{", low.value_or(0), ",", high ? concat(*high) : "", "}");
}

std::string Translator::quantified(std::string atom) {
  for (int count = 0;; ++count) {
    bool fixed = false;
    std::string quantifier;
    bool interval = false;
    if (take("*")) {
      quantifier = "*";
    } else if (take("+")) {
      quantifier = "+";
    } else if (take("?")) {
      quantifier = "?";
    } else if (const auto taken = take_interval(&fixed)) {
      quantifier = *taken;
      interval = true;
    } else {
      return atom;
    }
    previous_literal_ = 0;
    if (may_be_empty_ && quantifier != "?") refuse("a repetition of what may be empty");
    if (quantifier == "*" || quantifier == "?" || quantifier.starts_with("{0"))
      may_be_empty_ = true;
    const bool lazy = sees("?") && !fixed;
    if (lazy) {
      take("?");
      quantifier += "?";
    }
    // A + behind an interval is a quantifier of its own to Oniguruma, possessive to PCRE2.
    if (!lazy && !interval && take("+")) quantifier += "+";
    if (interval && (sees("+") || sees("?"))) result_.differs = true;
    atom += quantifier;
    if (!(sees("*") || sees("+") || sees("?") || sees("{"))) continue;
    if (lazy || count > 1) refuse("a quantifier of this quantifier");
    atom = "(?:" + atom + ")";
  }
}

// ---- escapes ----

std::string Translator::escape() {
  if (const auto anchor = take_anchor_escape()) {
    can_repeat_ = false;
    may_be_empty_ = true;
    previous_literal_ = 0;
    return *anchor;
  }
  if (take("R")) {
    previous_literal_ = 0;
    return R"((?>\r\n|[\n-\r\x{85}\x{2028}\x{2029}]))";
  }
  if (const auto set = take_set_escape(false)) {
    previous_literal_ = 0;
    return set->pattern();
  }
  return literal(take_code_point_escape());
}

std::optional<std::string> Translator::take_anchor_escape() {
  if (take("A")) return R"(\A)";
  if (take("z")) return R"(\z)";
  if (take("Z")) return R"((?=\n?\z))";
  if (!sees("b") && !sees("B")) return std::nullopt;
  note_property(R"(\b)");
  result_.differs = true;
  CharacterSet word;
  word.add_members(kWordMembers);
  word.add_members(kWordBeyondClasses);
  const std::string w = word.pattern();
  if (take("b")) return "(?:(?<=" + w + ")(?!" + w + ")|(?<!" + w + ")(?=" + w + "))";
  take("B");
  return "(?:(?<=" + w + ")(?=" + w + ")|(?<!" + w + ")(?!" + w + "))";
}

/// \d \D \s \S \w \W \h \H \p{...} \P{...}
std::optional<CharacterSet> Translator::take_set_escape(bool in_class) {
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

CharacterSet Translator::property(bool negated) {
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

char32_t Translator::take_hex(size_t min_digits, size_t max_digits) {
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

char32_t Translator::take_code_point_escape() {
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

// ---- classes ----

CharacterSet Translator::character_class() {
  if (++depth_ > kMaxDepth) refuse(concat("nesting deeper than ", kMaxDepth));
  take("[");
  const bool negated = take("^");
  CharacterSet set = class_union();
  while (take("&&")) {
    result_.differs = true;
    set.intersect(class_union());
  }
  if (!take("]")) refuse("a [ without ]");
  if (negated) set.negate();
  --depth_;
  return set;
}

std::optional<CharacterSet> Translator::take_posix_class() {
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
char32_t Translator::take_class_character(bool* is_set, CharacterSet* set) {
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
CharacterSet Translator::class_union() {
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

}  // namespace

PatternTranslation translate_pattern(std::string_view pattern) {
  return Translator(pattern).translate();
}

}  // namespace t2r::data
