#include "launch/cli/continuation.h"

#include <algorithm>

namespace t2r::launch {

Continuation::Continuation(const data::Tokenizer& tokenizer,
                           const Prompt& prompt,
                           std::vector<int64_t> end_tokens,
                           StopStrings stops)
    : tokenizer_(tokenizer),
      decoder_(tokenizer),
      end_tokens_(std::move(end_tokens)),
      stops_(std::move(stops)) {
  for (const int64_t id : prompt.ids) decoder_.add(static_cast<int32_t>(id));
  decoder_.finish();  // the prompt's text is written already
}

std::string Continuation::add(int64_t id) {
  if (has_ended()) return "";
  ids_.push_back(id);
  if (std::ranges::find(end_tokens_, id) != end_tokens_.end()) end_ = End::kToken;
  const auto token = static_cast<int32_t>(id);
  const bool is_hidden = tokenizer_.is_special(token) || token == tokenizer_.end_of_document();
  return is_hidden ? "" : give(decoder_.add(token));
}

std::string Continuation::finish() {
  const std::string text = give(decoder_.finish()), held = stops_.finish();
  text_ += held;
  return text + held;
}

std::string Continuation::give(std::string_view decoded) {
  std::string text = stops_.add(decoded);
  if (stops_.has_stopped()) end_ = End::kStop;
  text_ += text;
  return text;
}

const char* Continuation::reason() const {
  switch (end_) {
    case End::kToken:
      return "end";
    case End::kStop:
      return "stop";
    case End::kLength:
      break;
  }
  return "length";
}

}  // namespace t2r::launch
