#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "data/tokenizers/stream_decoder.h"
#include "data/tokenizers/tokenizer.h"
#include "launch/cli/prompts.h"
#include "launch/cli/text_stream.h"

namespace t2r::launch {

/// What a model writes behind one prompt, as its tokens arrive.
class Continuation {
 public:
  /// @param end_tokens  behind each of which the text ends
  Continuation(const data::Tokenizer& tokenizer,
               const Prompt& prompt,
               std::vector<int64_t> end_tokens,
               StopStrings stops);

  /// The text that is now certain and was not given before; "" once the text has ended.
  std::string add(int64_t id);

  /// The rest of the text, to which nothing is added any more.
  std::string finish();

  bool has_ended() const { return end_ != End::kLength; }

  /// Why there is no more of it: "end" (an end token), "stop" (a stop string), "length".
  const char* reason() const;

  /// Up to the end token, or to that which made a stop string complete.
  const std::vector<int64_t>& ids() const { return ids_; }

  const std::string& text() const { return text_; }

 private:
  enum class End { kLength, kToken, kStop };

  std::string give(std::string_view decoded);

  const data::Tokenizer& tokenizer_;
  data::StreamDecoder decoder_;
  std::vector<int64_t> end_tokens_, ids_;
  StopStrings stops_;
  std::string text_;
  End end_ = End::kLength;
};

}  // namespace t2r::launch
