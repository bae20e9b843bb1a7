#pragma once

#include <string>
#include <string_view>
#include <vector>

namespace t2r::data {

/// One step of what tokenizer.json does to a text before it looks for tokens.
struct NormalizerStep {
  enum class Kind {
    kNfc,
    kNfd,
    kNfkc,
    kNfkd,
    kPrepend,  ///< `to` in front of a text that is not empty
    kReplace,  ///< every `from` by `to`
  };
  Kind kind = Kind::kNfc;
  std::string from;
  std::string to;
};

/// `text` after all steps. Normal forms are those of tokenizers 0.23.3, whose Unicode version is an
/// old one.
/// @param text  valid UTF-8
std::string normalize(const std::vector<NormalizerStep>& steps, std::string_view text);

/// For a tokenizer's hash.
std::string describe(const NormalizerStep& step);

}  // namespace t2r::data
