#include "launch/cli/text_stream.h"

#include <algorithm>
#include <utility>

#include "base/error.h"
#include "base/text.h"
#include "data/unicode/utf8.h"

namespace t2r::launch {

StopStrings::StopStrings(std::vector<std::string> stops) : stops_(std::move(stops)) {
  for (const std::string& stop : stops_) {
    if (stop.empty()) throw ConfigError(not_allowed("stop", "\"\"", "one character or more"));
    if (data::find_invalid_utf8(stop) < stop.size())
      throw ConfigError("stop is not valid UTF-8, which generated text always is");
  }
}

std::string StopStrings::add(std::string_view part) {
  if (has_stopped_) return "";
  held_ += part;
  size_t certain = held_.size();
  for (const std::string& stop : stops_) {
    const size_t found = held_.find(stop);
    if (found != std::string::npos) {
      has_stopped_ = true;
      certain = std::min(certain, found);
    }
  }
  if (!has_stopped_) {
    for (const std::string& stop : stops_) {
      // The longest end of the text that begins the string.
      size_t length = std::min(stop.size() - 1, held_.size());
      while (length > 0 && !held_.ends_with(std::string_view(stop).substr(0, length))) --length;
      certain = std::min(certain, held_.size() - length);
    }
  }
  std::string text = held_.substr(0, certain);
  held_.erase(0, certain);
  return text;
}

std::string StopStrings::finish() {
  return has_stopped_ ? "" : std::exchange(held_, "");
}

void OrderedTexts::add(size_t index, std::string_view text) {
  if (index == current_) {
    if (!text.empty() && !(out_ << text << std::flush))
      throw WriteError("standard output: cannot write");
  } else {
    texts_[index].waiting += text;
  }
}

void OrderedTexts::finish(size_t index) {
  texts_[index].is_finished = true;
  while (current_ < texts_.size() && texts_[current_].is_finished) {
    if (++current_ == texts_.size()) return;
    out_ << separator_ << std::exchange(texts_[current_].waiting, "") << std::flush;
  }
}

}  // namespace t2r::launch
