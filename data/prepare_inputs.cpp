#include "data/prepare_inputs.h"

#include <algorithm>
#include <array>
#include <cstdio>
#include <map>
#include <set>
#include <string_view>
#include <system_error>
#include <utility>

#include "base/error.h"
#include "data/prepare_lm.h"
#include "data/read_only_file.h"

namespace t2r::data {
namespace {

namespace fs = std::filesystem;

constexpr std::string_view kFilledPrefix = "filled-";
constexpr int64_t kMaxGroups = 256;
constexpr int64_t kMinGroupBytes = 4 << 20;

bool is_number(std::string_view text) {
  return !text.empty() && text.find_first_not_of("0123456789") == std::string_view::npos;
}

struct KnownBeginning {
  std::string_view bytes;
  const char* what;
  bool even_as_bytes;  // refused with allow_invalid_utf8, too
};

using std::string_view_literals::operator""sv;
constexpr KnownBeginning kKnownBeginnings[] = {
    {"t2r shard 1\nbytes "sv, "is a shard of tokens, not text; shards go to --data", true},
    {"\x89HDF\r\n\x1a\n"sv, "is HDF5, not text; shards of tokens go to --data", true},
    {"version https://git-lfs"sv, "is a Git LFS pointer, not the text (`git lfs pull`)", true},
    {"\x1f\x8b"sv, "is compressed (gzip); unpack it first", false},
    {"\x28\xb5\x2f\xfd"sv, "is compressed (zstd); unpack it first", false},
    {"\xfd\x37zXZ\0"sv, "is compressed (xz); unpack it first", false},
    {"BZh91AY&SY"sv, "is compressed (bzip2); unpack it first", false},
    {"PK\x03\x04"sv, "is a zip archive; unpack it first", false},
    {"PAR1\x15"sv, "is a Parquet file; write its text to text files first", false},
    {"ARROW1\0\0"sv, "is an Arrow file; write its text to text files first", false},
    {"%PDF-1."sv, "is a PDF; extract its text first", false},
    {"\xff\xfe"sv, "is UTF-16; convert it to UTF-8 first (iconv -f UTF-16 -t UTF-8)", false},
    {"\xfe\xff"sv, "is UTF-16; convert it to UTF-8 first (iconv -f UTF-16 -t UTF-8)", false},
};

/// What is no text would fail at its first odd byte, or not at all: says at once what it is.
void check_is_text(const PrepareInput& input, bool allow_invalid_utf8) {
  const ReadOnlyFile file(input.path);
  std::string head(static_cast<size_t>(std::min<int64_t>(file.size(), 32)), '\0');
  file.read(0, static_cast<int64_t>(head.size()), head.data());
  for (const KnownBeginning& known : kKnownBeginnings) {
    if (allow_invalid_utf8 && !known.even_as_bytes) continue;
    if (!head.starts_with(known.bytes)) continue;
    throw DataError(concat(input.path.string(), ": ", known.what));
  }
}

/// The name of an input's first shard if it has shards of its own: a corpus reads in this order.
std::string first_shard(const PrepareInput& input) {
  return input.path.stem().string() + "-00000.h5";
}

std::vector<InputGroup> one_group_each(std::vector<PrepareInput> inputs) {
  std::vector<InputGroup> groups;
  std::map<std::string, fs::path> path_of_stem;
  for (PrepareInput& input : inputs) {
    const std::string stem = input.path.stem().string();
    const auto [other, is_first] = path_of_stem.emplace(stem, input.path);
    if (!is_first) {
      throw ConfigError(concat(input.path.string(),
                               " and ",
                               other->second.string(),
                               " would both write ",
                               first_shard(input),
                               "; file names must differ without their endings, or take "
                               "--fill-shards true"));
    }
    const int64_t num_bytes = input.num_bytes;
    groups.push_back({stem, {std::move(input)}, num_bytes});
  }
  return groups;
}

std::vector<InputGroup> filled_groups(std::vector<PrepareInput> inputs) {
  std::set<fs::path> seen;
  int64_t num_bytes = 0;
  for (const PrepareInput& input : inputs) {
    num_bytes += input.num_bytes;
    std::error_code error;
    const fs::path real = fs::canonical(input.path, error);
    if (!seen.insert(error ? input.path : real).second) {
      throw ConfigError(concat(input.path.string(), ": is given twice"));
    }
  }
  const int64_t wanted_bytes = std::max(kMinGroupBytes, num_bytes / kMaxGroups);
  std::vector<InputGroup> groups;
  for (PrepareInput& input : inputs) {
    if (groups.empty() || groups.back().num_bytes >= wanted_bytes) {
      std::array<char, 32> stem{};
      std::snprintf(stem.data(), stem.size(), "%s%05zu", kFilledPrefix.data(), groups.size());
      groups.push_back({stem.data(), {}, 0});
    }
    groups.back().num_bytes += input.num_bytes;
    groups.back().inputs.push_back(std::move(input));
  }
  return groups;
}

}  // namespace

PrepareInput look_at_input(const fs::path& path, bool allow_invalid_utf8) {
  std::error_code error;
  if (fs::is_directory(path, error)) {
    throw ConfigError(
        concat(path.string(),
               ": is not a file but a folder; name the text files in it, for example ",
               (path / "*.txt").string()));
  }
  if (!fs::exists(path, error)) throw ConfigError(concat(path.string(), ": does not exist"));
  const bool is_file = fs::is_regular_file(path, error);
  const int64_t num_bytes = is_file ? static_cast<int64_t>(fs::file_size(path, error)) : 0;
  if (!is_file || error) {
    throw ConfigError(concat(path.string(), ": is not a file; inputs are text files"));
  }
  const PrepareInput input{path, num_bytes};
  check_is_text(input, allow_invalid_utf8);
  return input;
}

std::vector<InputGroup> group_inputs(const PrepareLmOptions& options) {
  if (options.inputs.empty()) throw ConfigError("no input file was given");
  std::vector<PrepareInput> inputs;
  inputs.reserve(options.inputs.size());
  for (const fs::path& path : options.inputs) {
    inputs.push_back(look_at_input(path, options.allow_invalid_utf8));
  }
  std::sort(inputs.begin(), inputs.end(), [](const PrepareInput& a, const PrepareInput& b) {
    const std::string first_a = first_shard(a), first_b = first_shard(b);
    return first_a != first_b ? first_a < first_b : a.path < b.path;
  });
  const bool fills = options.fill_shards.value_or(inputs.size() > kMaxSeparateInputs);
  return fills ? filled_groups(std::move(inputs)) : one_group_each(std::move(inputs));
}

bool is_filled_stem(std::string_view stem) {
  return stem.starts_with(kFilledPrefix) && is_number(stem.substr(kFilledPrefix.size()));
}

std::string shard_stem(const fs::path& path) {
  const std::string name = path.stem().string();
  const size_t dash = name.rfind('-');
  if (path.extension() != ".h5" || dash == std::string::npos) return {};
  return is_number(std::string_view(name).substr(dash + 1)) ? name.substr(0, dash) : std::string();
}

}  // namespace t2r::data
