#include "base/file_kind.h"

#include <algorithm>
#include <cctype>

namespace t2r {
namespace {

bool starts_with_ignoring_case(std::string_view text, std::string_view lower_case) {
  return text.size() >= lower_case.size() &&
         std::equal(lower_case.begin(), lower_case.end(), text.begin(), [](char wanted, char c) {
           return std::tolower(static_cast<unsigned char>(c)) == wanted;
         });
}

}  // namespace

std::optional<std::string> describe_wrong_file(std::string_view beginning) {
  constexpr std::string_view kByteOrderMark = "\xEF\xBB\xBF";
  if (beginning.starts_with("version https://git-lfs.github.com/spec/")) {
    return "a Git LFS pointer, not the file itself; run `git lfs pull` where it was cloned, or "
           "download it again";
  }
  std::string_view text = beginning;
  if (text.starts_with(kByteOrderMark)) text.remove_prefix(kByteOrderMark.size());
  const size_t start = text.find_first_not_of(" \t\r\n");
  text.remove_prefix(std::min(start, text.size()));
  if (starts_with_ignoring_case(text, "<!doctype html") ||
      starts_with_ignoring_case(text, "<html")) {
    return "an HTML page, not the file itself (a download page, a login or an error); download the "
           "raw file";
  }
  if (starts_with_ignoring_case(text, "<?xml")) {
    return "an XML document, not the file itself (often a server's error); download it again";
  }
  if (beginning.starts_with("PK\x03\x04"))
    return "a zip archive (or a PyTorch checkpoint); unpack it";
  if (beginning.starts_with("\x1F\x8B")) return "a gzip archive; unpack it";
  if (beginning.starts_with("\x80\x02") || beginning.starts_with("\x80\x04"))
    return "a Python pickle";
  return std::nullopt;
}

}  // namespace t2r
