#pragma once

#include <cstdint>
#include <string>

namespace t2r::launch {

/// Progress for who waits: on a terminal a bar in one line that is written over, elsewhere lines of
/// the log. One rank alone makes one.
class ProgressLine {
 public:
  ProgressLine();
  /// finish()
  ~ProgressLine();
  ProgressLine(const ProgressLine&) = delete;
  ProgressLine& operator=(const ProgressLine&) = delete;

  bool is_terminal() const { return is_terminal_; }

  /// Shows `text`, on a terminal behind a bar of which done / total is filled; ends the line when
  /// all is done.
  void show(int64_t done, int64_t total, const std::string& text);

  /// Ends the line that is being written over, if there is one: call it before writing other lines.
  void finish();

 private:
  bool is_terminal_;
  bool is_open_ = false;
};

}  // namespace t2r::launch
