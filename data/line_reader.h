#pragma once

#include <cstdint>
#include <cstdio>
#include <filesystem>
#include <memory>
#include <string>
#include <string_view>

namespace t2r::data {

/// Lines of a text file, with their line ends, in bounded memory.
///
/// A line longer than a limit comes in parts: cut before the last space within the limit, else
/// before the code point that would not fit. The parts depend on the text and the limit alone.
class LineReader {
 public:
  /// @param max_line_bytes  longest text returned at once, at least 4
  /// @throws DataError  if the file cannot be opened (or, in next(), read)
  LineReader(const std::filesystem::path& path, int64_t max_line_bytes);

  /// The next line, valid until the next call; empty at the end of the file.
  std::string_view next();

  /// Bytes of the file before the line last returned.
  int64_t offset() const { return offset_; }

  /// Whether the text last returned is a later part of a line.
  bool continues_line() const { return continues_line_; }

 private:
  bool refill();
  size_t find_cut(std::string_view line) const;

  std::string path_;
  size_t max_line_bytes_;
  std::unique_ptr<std::FILE, int (*)(std::FILE*)> file_;
  std::string buffer_;
  size_t begin_ = 0;       // of the line last returned, in buffer_
  size_t line_bytes_ = 0;  // of the line last returned
  int64_t offset_ = 0;
  bool continues_line_ = false;
};

/// Whether `byte` is one of the six white-space characters of ASCII.
bool is_ascii_space(char byte);

/// `text` without white space at its ends.
std::string_view strip_ascii_space(std::string_view text);

}  // namespace t2r::data
