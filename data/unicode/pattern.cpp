#include "data/unicode/pattern.h"

#include <algorithm>
#include <array>
#include <cstdint>
#include <optional>
#include <utility>

#include "base/error.h"
#include "base/quoted_name.h"
#include "data/unicode/character_set.h"
#include "data/unicode/pattern_reader.h"
#include "data/unicode/utf8.h"

namespace t2r::data {
namespace {

constexpr int64_t kMaxRepeats = 65535;  // PCRE2's

/// Pairs of ASCII letters that one character folds to: under (?i), "ss" matches U+00DF.
constexpr std::array<std::string_view, 5> kFoldingPairs = {"ss", "st", "ff", "fi", "fl"};

std::string literal_of(char32_t c) {
  std::string text;
  if (c < 0x80 && !is_ascii_letter(c) && !is_ascii_digit(c)) {
    if (c < 0x20 || c == 0x7F) return concat("\\x{", std::hex, static_cast<unsigned>(c), "}");
    if (c != ' ') text.push_back('\\');
  }
  append_utf8(c, &text);
  return text;
}

/// Groups, quantifiers and anchors, by recursive descent; what its functions return is PCRE2.
class Translator final : private PatternReader {
 public:
  explicit Translator(std::string_view pattern) : PatternReader(pattern) {}

  PatternTranslation translate() {
    result_.pcre2 = alternatives();
    if (!at_end()) refuse("a ) without (");
    return std::move(result_);
  }

 private:
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
  std::optional<std::string> take_anchor_escape();

  bool dot_takes_line_feed_ = false;
  bool can_repeat_ = false;        ///< the last atom is one that a quantifier may follow
  char32_t previous_literal_ = 0;  ///< directly before, for kFoldingPairs
  bool may_be_empty_ = false;      ///< the last part may match the empty text
};

std::string Translator::alternatives() {
  enter();
  std::string all = sequence();
  bool may_be_empty = may_be_empty_;
  while (take("|")) {
    all += "|" + sequence();
    may_be_empty = may_be_empty || may_be_empty_;
  }
  may_be_empty_ = may_be_empty;
  leave();
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

}  // namespace

PatternTranslation translate_pattern(std::string_view pattern) {
  return Translator(pattern).translate();
}

}  // namespace t2r::data
