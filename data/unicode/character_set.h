#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

namespace t2r::data {

/// What a character class of a pattern matches: always one character. Written as PCRE2.
class CharacterSet {
 public:
  void add(char32_t first, char32_t last);
  /// Adds what stands inside the brackets of a PCRE2 class.
  void add_members(std::string_view members) { members_ += members; }
  void add(const CharacterSet& other);

  /// Characters that are in both.
  void intersect(const CharacterSet& other);
  void negate();

  /// A pattern that matches one character of the set.
  std::string pattern() const;

 private:
  std::string members_;                 ///< between the brackets of a class
  std::vector<std::string> fragments_;  ///< patterns of one character each, in the set as well
};

/// Members of a class for a name as in \p{name} or [:name:], in Oniguruma's meaning of it; none if
/// the name is not known. Case, spaces, - and _ do not count.
std::optional<std::string_view> find_property(std::string_view name);

/// White space as Oniguruma's \s has it, in members that no Unicode version changes.
inline constexpr std::string_view kSpaceMembers =
    R"(\x09-\x0D\x20\x85\xA0\x{1680}\x{2000}-\x{200A}\x{2028}\x{2029}\x{202F}\x{205F}\x{3000})";

inline constexpr std::string_view kWordMembers = R"(\p{Alphabetic}\p{M}\p{Nd}\p{Pc})";
inline constexpr std::string_view kHexDigitMembers = "0-9A-Fa-f";

}  // namespace t2r::data
