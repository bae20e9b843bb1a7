#include "base/foreign_file.h"

#include <algorithm>
#include <cctype>

#include "base/durable_file.h"
#include "base/error.h"

namespace t2r {
namespace {

constexpr size_t kBeginBytes = 512;
constexpr std::string_view kByteOrderMark = "\xEF\xBB\xBF";

/// The text in lower case, without what may stand in front of it.
std::string lower_begin(std::string_view begin) {
  if (begin.starts_with(kByteOrderMark)) begin.remove_prefix(kByteOrderMark.size());
  const size_t first = begin.find_first_not_of(" \t\r\n");
  std::string text(first == std::string_view::npos ? "" : begin.substr(first, kBeginBytes));
  std::ranges::transform(
      text, text.begin(), [](unsigned char c) { return static_cast<char>(std::tolower(c)); });
  return text;
}

}  // namespace

std::optional<std::string> foreign_content(std::string_view begin) {
  const std::string text = lower_begin(begin);
  if (text.starts_with("version https://git-lfs.github.com/spec/"))
    return "is a Git LFS pointer, not the file itself: the repository was cloned without Git LFS; "
           "run `git lfs install` and `git lfs pull` in it, or download the file again";
  for (const std::string_view tag : {"<!doctype html", "<html", "<head", "<?xml"})
    if (text.starts_with(tag))
      return "is a web page (HTML), not the file itself: an error or log-in page was saved under "
             "this name; download the file again";
  // A safetensors file begins with any eight bytes of length, and then this.
  if (begin.size() > 8 && begin[8] == '{') return std::nullopt;
  if (begin.starts_with("PK\x03\x04"))
    return "is a zip archive, as torch.save writes it; save the model with save_pretrained(..., "
           "safe_serialization=True)";
  if (begin.size() >= 2 && begin[0] == '\x80' && begin[1] >= 2 && begin[1] <= 5)
    return "is a Python pickle, which can run any code when it is loaded; save the model with "
           "save_pretrained(..., safe_serialization=True)";
  if (begin.starts_with("\x1F\x8B")) return "is a gzip archive; unpack it";
  if (begin.starts_with("GGUF"))
    return "is a GGUF file, as llama.cpp has it; take the model's Hugging Face folder";
  if (begin.starts_with("\x89HDF\r\n"))
    return "is an HDF5 file; the shards of `t2r prepare lm` and Keras' weights are such files";
  return std::nullopt;
}

void refuse_foreign_content(std::string_view begin, const std::string& file) {
  if (const auto what = foreign_content(begin)) throw DataError(concat(file, ": ", *what));
}

void refuse_foreign_file(const std::filesystem::path& file) {
  refuse_foreign_content(read_beginning(file, kBeginBytes), file.string());
}

}  // namespace t2r
