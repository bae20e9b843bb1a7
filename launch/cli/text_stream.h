#pragma once

#include <cstddef>
#include <ostream>
#include <string>
#include <string_view>
#include <vector>

namespace t2r::launch {

/// Cuts a text that arrives in parts in front of the first of some stop strings.
class StopStrings {
 public:
  /// @throws ConfigError  if one is empty, or not UTF-8
  explicit StopStrings(std::vector<std::string> stops);

  /// What of the text so far, with `part` behind it, is now certain to stand in front of every stop
  /// string, and was not given before. An end that may begin one is held back.
  std::string add(std::string_view part);

  /// What was held back, as the text ends here.
  std::string finish();

  bool has_stopped() const { return has_stopped_; }

 private:
  std::vector<std::string> stops_;
  std::string held_;
  bool has_stopped_ = false;
};

/// Writes texts that grow at the same time one behind another: the first one that is not finished
/// as it grows, the others when their turn comes.
class OrderedTexts {
 public:
  /// @param separator  between two texts
  OrderedTexts(std::ostream& out, size_t count, std::string separator)
      : out_(out), separator_(std::move(separator)), texts_(count) {}

  /// @throws WriteError  if a text cannot be written
  void add(size_t index, std::string_view text);
  void finish(size_t index);

 private:
  struct Text {
    std::string waiting;
    bool is_finished = false;
  };

  std::ostream& out_;
  std::string separator_;
  std::vector<Text> texts_;
  size_t current_ = 0;
};

}  // namespace t2r::launch
