#pragma once

#include <string>
#include <string_view>

namespace t2r::data {

/// A pattern of tokenizer.json for PCRE2.
struct PatternTranslation {
  std::string pcre2;
  /// Asks for properties of code points: match it on replace_version_dependent()'s text.
  bool reads_properties = false;
  /// PCRE2 would take the pattern as it was written for something else.
  bool differs = false;
};

/// Translates a regular expression of Hugging Face tokenizers, which is Oniguruma's (Ruby syntax),
/// to one that matches the same with PCRE2 (UTF and Unicode properties).
///
/// What differs between the two is spelled out: an interval followed by + is repeated, ^ and $ are
/// at every line, \w and \b know marks, \h is a hexadecimal digit, classes are nested and
/// intersected (&&), an option in the middle of a pattern groups what follows, {,n} is an interval.
/// Groups capture nothing.
/// @throws DataError  names pattern, byte and what is not supported: back references, \X, \K, \G,
///                    absent groups, conditions, calls, options but i and m; under (?i) also
///                    properties, characters beyond ASCII and pairs that fold to one character (ss)
PatternTranslation translate_pattern(std::string_view pattern);

}  // namespace t2r::data
