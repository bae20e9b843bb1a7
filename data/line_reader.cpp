#include "data/line_reader.h"

#include <cerrno>
#include <cstring>

#include "base/error.h"

namespace t2r::data {
namespace {

constexpr size_t kBlockBytes = 256 << 10;
constexpr std::string_view kAsciiSpace = " \t\n\v\f\r";

}  // namespace

LineReader::LineReader(const std::filesystem::path& path, int64_t max_line_bytes)
    : path_(path.string()),
      max_line_bytes_(static_cast<size_t>(max_line_bytes)),
      file_(std::fopen(path_.c_str(), "rb"), &std::fclose) {
  require(max_line_bytes >= 4, "LineReader: max_line_bytes must hold a code point");
  if (!file_) throw DataError(concat(path_, ": cannot open: ", std::strerror(errno)));
}

std::string_view LineReader::next() {
  continues_line_ = line_bytes_ > 0 && buffer_[begin_ + line_bytes_ - 1] != '\n';
  begin_ += line_bytes_;
  offset_ += static_cast<int64_t>(line_bytes_);
  std::string_view rest = std::string_view(buffer_).substr(begin_);
  size_t line_end = rest.substr(0, max_line_bytes_).find('\n');
  bool has_more = true;
  while (line_end == std::string_view::npos && rest.size() <= max_line_bytes_ && has_more) {
    has_more = refill();
    rest = buffer_;  // refill() moves the text, at the end of the file too
    line_end = rest.substr(0, max_line_bytes_).find('\n');
  }
  if (line_end != std::string_view::npos) {
    line_bytes_ = line_end + 1;
  } else {
    line_bytes_ = rest.size() <= max_line_bytes_ ? rest.size() : find_cut(rest);
  }
  return rest.substr(0, line_bytes_);
}

bool LineReader::refill() {
  buffer_.erase(0, begin_);
  begin_ = 0;
  const size_t size = buffer_.size();
  buffer_.resize(size + kBlockBytes);
  const size_t count = std::fread(buffer_.data() + size, 1, kBlockBytes, file_.get());
  buffer_.resize(size + count);
  if (count == 0 && std::ferror(file_.get()) != 0) {
    throw DataError(concat(path_, ": cannot read: ", std::strerror(errno)));
  }
  return count > 0;
}

size_t LineReader::find_cut(std::string_view line) const {
  const size_t space = line.rfind(' ', max_line_bytes_);
  if (space != std::string_view::npos && space > 0) return space;
  size_t end = max_line_bytes_;
  while (end > max_line_bytes_ - 3 && (static_cast<uint8_t>(line[end]) & 0xC0) == 0x80) --end;
  return end;
}

bool is_ascii_space(char byte) {
  return kAsciiSpace.find(byte) != std::string_view::npos;
}

std::string_view strip_ascii_space(std::string_view text) {
  const size_t begin = text.find_first_not_of(kAsciiSpace);
  if (begin == std::string_view::npos) return {};
  return text.substr(begin, text.find_last_not_of(kAsciiSpace) - begin + 1);
}

}  // namespace t2r::data
