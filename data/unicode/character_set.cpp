#include "data/unicode/character_set.h"

#include <cctype>
#include <cstdio>
#include <unordered_map>
#include <utility>

namespace t2r::data {
namespace {

/// Any character, the line feed too.
constexpr std::string_view kAny = "(?s:.)";

std::string code_point_member(char32_t code_point) {
  char text[16];
  std::snprintf(text, sizeof(text), "\\x{%X}", static_cast<unsigned>(code_point));
  return text;
}

std::string normalized_name(std::string_view name) {
  std::string normalized;
  for (const char c : name) {
    if (c == ' ' || c == '_' || c == '-') continue;
    normalized.push_back(static_cast<char>(std::tolower(static_cast<unsigned char>(c))));
  }
  return normalized;
}

/// A name of a general category and of the scripts and POSIX classes of which every code point was
/// compared. A property may stand for several members.
const std::unordered_map<std::string, std::string>& known_properties() {
  static const std::unordered_map<std::string, std::string> known = [] {
    std::unordered_map<std::string, std::string> names;
    const std::pair<const char*, const char*> categories[] = {{"L", "Letter"},
                                                              {"Lu", "UppercaseLetter"},
                                                              {"Ll", "LowercaseLetter"},
                                                              {"Lt", "TitlecaseLetter"},
                                                              {"Lm", "ModifierLetter"},
                                                              {"Lo", "OtherLetter"},
                                                              {"M", "Mark"},
                                                              {"Mn", "NonspacingMark"},
                                                              {"Mc", "SpacingMark"},
                                                              {"Me", "EnclosingMark"},
                                                              {"N", "Number"},
                                                              {"Nd", "DecimalNumber"},
                                                              {"Nl", "LetterNumber"},
                                                              {"No", "OtherNumber"},
                                                              {"P", "Punctuation"},
                                                              {"Pc", "ConnectorPunctuation"},
                                                              {"Pd", "DashPunctuation"},
                                                              {"Ps", "OpenPunctuation"},
                                                              {"Pe", "ClosePunctuation"},
                                                              {"Pi", "InitialPunctuation"},
                                                              {"Pf", "FinalPunctuation"},
                                                              {"Po", "OtherPunctuation"},
                                                              {"S", "Symbol"},
                                                              {"Sm", "MathSymbol"},
                                                              {"Sc", "CurrencySymbol"},
                                                              {"Sk", "ModifierSymbol"},
                                                              {"So", "OtherSymbol"},
                                                              {"Z", "Separator"},
                                                              {"Zs", "SpaceSeparator"},
                                                              {"Zl", "LineSeparator"},
                                                              {"Zp", "ParagraphSeparator"},
                                                              {"C", "Other"},
                                                              {"Cc", "Control"},
                                                              {"Cf", "Format"},
                                                              {"Co", "PrivateUse"},
                                                              {"Cn", "Unassigned"}};
    for (const auto& [brief, full] : categories) {
      const std::string member = std::string("\\p{") + brief + "}";
      names[normalized_name(brief)] = member;
      names[normalized_name(full)] = member;
    }
    for (const char* script : {"Han",
                               "Hiragana",
                               "Katakana",
                               "Hangul",
                               "Latin",
                               "Greek",
                               "Cyrillic",
                               "Arabic",
                               "Hebrew",
                               "Thai",
                               "Devanagari"}) {
      names[normalized_name(script)] = std::string("\\p{sc:") + script + "}";
    }
    const std::pair<const char*, std::string_view> classes[] = {
        {"alphabetic", R"(\p{Alphabetic})"},
        {"alpha", R"(\p{Alphabetic})"},
        {"uppercase", R"(\p{Uppercase})"},
        {"upper", R"(\p{Uppercase})"},
        {"lowercase", R"(\p{Lowercase})"},
        {"lower", R"(\p{Lowercase})"},
        {"digit", R"(\p{Nd})"},
        {"alnum", R"(\p{Alphabetic}\p{Nd})"},
        {"punct", R"(\p{P}\p{S})"},
        {"word", kWordMembers},
        {"cntrl", R"(\p{Cc})"},
        {"blank", R"(\p{Zs}\t)"},
        {"graph", R"(\p{L}\p{M}\p{N}\p{P}\p{S}\p{Cf}\p{Co})"},
        {"print", R"(\p{L}\p{M}\p{N}\p{P}\p{S}\p{Cf}\p{Co}\p{Zs})"},
        {"space", kSpaceMembers},
        {"whitespace", kSpaceMembers},
        {"xdigit", kHexDigitMembers},
        {"ascii", R"(\x00-\x7F)"}};
    for (const auto& [name, members] : classes) names[name] = members;
    return names;
  }();
  return known;
}

}  // namespace

void CharacterSet::add(char32_t first, char32_t last) {
  members_ += code_point_member(first);
  if (last != first) members_ += "-" + code_point_member(last);
}

void CharacterSet::add(const CharacterSet& other) {
  members_ += other.members_;
  fragments_.insert(fragments_.end(), other.fragments_.begin(), other.fragments_.end());
}

void CharacterSet::intersect(const CharacterSet& other) {
  const std::string both = "(?:(?=" + pattern() + ")" + other.pattern() + ")";
  members_.clear();
  fragments_ = {both};
}

void CharacterSet::negate() {
  std::string negated;
  if (members_.empty() && fragments_.empty()) {
    negated = kAny;
  } else if (fragments_.empty()) {
    negated = "[^" + members_ + "]";
  } else {
    negated = "(?:(?!" + pattern() + ")" + std::string(kAny) + ")";
  }
  members_.clear();
  fragments_ = {negated};
}

std::string CharacterSet::pattern() const {
  if (members_.empty() && fragments_.empty()) return "(?!)";
  if (fragments_.empty()) return "[" + members_ + "]";
  if (members_.empty() && fragments_.size() == 1) return fragments_.front();
  std::string alternatives = members_.empty() ? "" : "[" + members_ + "]";
  for (const std::string& fragment : fragments_) {
    if (!alternatives.empty()) alternatives += "|";
    alternatives += fragment;
  }
  return "(?:" + alternatives + ")";
}

std::optional<std::string_view> find_property(std::string_view name) {
  const auto found = known_properties().find(normalized_name(name));
  if (found == known_properties().end()) return std::nullopt;
  return found->second;
}

}  // namespace t2r::data
