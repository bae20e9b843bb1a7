#pragma once

#include <string>
#include <string_view>

#include "data/tokenizers/tokenizer.h"

namespace t2r::data {

/// Text of ids that come one after the other, as soon as no later id can change it.
///
/// What add() and finish() give is valid UTF-8, and together it is the text of all ids: characters
/// that span tokens come out whole, invalid bytes as U+FFFD, an id without a token as nothing, and
/// the space that a tokenizer puts before a text is taken off once. Of byte pieces (<0xE6>) a run
/// waits for its end where the tokenizer judges runs as a whole (TextRules).
/// The tokenizer must outlive the decoder.
class StreamDecoder {
 public:
  explicit StreamDecoder(const Tokenizer& tokenizer)
      : tokenizer_(tokenizer), rules_(tokenizer.text_rules()) {}

  /// @return  text that has become final; often empty in the middle of a character
  /// @throws DataError  if `id` is negative
  std::string add(int32_t id);

  /// What is left: U+FFFD for a character that was not completed.
  std::string finish();

 private:
  std::string take_text(std::string_view bytes, bool may_strip);
  std::string close_run();
  std::string take_characters(bool all);
  std::string take_complete(bool all);

  const Tokenizer& tokenizer_;
  TextRules rules_;
  std::string run_;      ///< byte pieces whose run has not ended
  std::string waiting_;  ///< bytes of text that may be an unfinished character
  bool at_start_ = true;
};

}  // namespace t2r::data
