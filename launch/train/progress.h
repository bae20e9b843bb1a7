#pragma once

#include <chrono>
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

  /// Shows `text`, on a terminal behind a bar of which done / total is filled (the run's log file
  /// gets a plain line); ends the line when all is done.
  void show(int64_t done, int64_t total, const std::string& text);

  /// Ends the line that is being written over, if there is one: call it before writing other lines.
  void finish();

 private:
  friend class PassingProgress;
  void draw(int64_t done, int64_t total, const std::string& text);
  void wipe();

  bool is_terminal_;
  bool is_open_ = false;
};

/// Progress of what is of no interest once it is over: on a terminal a bar, five times a second at
/// most, which is wiped out at the end; elsewhere a line of the log every half minute.
class PassingProgress {
 public:
  /// Ends what `line` shows. `line` outlives this.
  explicit PassingProgress(ProgressLine& line);
  /// Wipes the bar out.
  ~PassingProgress();
  PassingProgress(const PassingProgress&) = delete;
  PassingProgress& operator=(const PassingProgress&) = delete;

  /// `what` and how much of it is done, with the time that is left.
  void show(int64_t done, int64_t total, const std::string& what);

 private:
  ProgressLine& line_;
  std::chrono::steady_clock::time_point start_, last_;
};

/// "1h02m" or "2m05s".
std::string duration_text(double seconds);

}  // namespace t2r::launch
