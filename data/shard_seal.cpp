#include "data/shard_seal.h"

#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <string_view>
#include <vector>

#include "base/error.h"
#include "base/hash.h"

namespace t2r::data {
namespace {

constexpr std::string_view kFirstLine = "t2r shard 1\n";
constexpr std::string_view kHdf5Signature = "\x89HDF\r\n\x1a\n";
constexpr int64_t kBlockBytes = 1 << 20;

std::string render_seal(int64_t file_bytes, const std::string& hash) {
  std::string text = concat(kFirstLine, "bytes ", file_bytes, "\nxxh3-128 ", hash, "\n");
  require(text.size() < static_cast<size_t>(kSealBytes), "render_seal: does not fit");
  text.resize(static_cast<size_t>(kSealBytes), '\0');
  return text;
}

std::string hash_behind_seal(const ReadOnlyFile& file) {
  Hasher hasher;
  std::vector<char> block(static_cast<size_t>(kBlockBytes));
  for (int64_t offset = kSealBytes; offset < file.size();) {
    const int64_t count = std::min(kBlockBytes, file.size() - offset);
    file.read(offset, count, block.data());
    hasher.update(block.data(), static_cast<size_t>(count));
    offset += count;
  }
  return hasher.hex();
}

/// The text of `line` "key value\n" of a seal; empty if it has none.
std::string value_of(std::string_view seal, std::string_view key) {
  const size_t begin = seal.find(key);
  if (begin == std::string_view::npos) return {};
  const std::string_view rest = seal.substr(begin + key.size());
  return std::string(rest.substr(0, rest.find('\n')));
}

uint64_t little_endian(std::string_view bytes, size_t offset) {
  uint64_t value = 0;
  for (size_t i = 8; i-- > 0;) value = value << 8 | static_cast<uint8_t>(bytes[offset + i]);
  return value;
}

/// What an earlier version's shard, or an HDF5 file of another writer, must have in its superblock
/// before the library is let near it.
void check_superblock(const ReadOnlyFile& file, std::string_view head) {
  const auto refuse = [&](const std::string& rule) {
    throw DataError(concat(file.path(), ": damaged: HDF5 superblock: ", rule));
  };
  // Offsets of: the sizes of addresses and lengths, the base address, the end of the file.
  struct Layout {
    size_t sizes, base, end;
  };
  constexpr Layout kLayouts[] = {{13, 24, 40}, {13, 28, 44}, {9, 12, 28}, {9, 12, 28}};
  if (head.size() < 96) refuse("the file ends before");
  const size_t version = static_cast<uint8_t>(head[8]);
  if (version >= std::size(kLayouts)) refuse(concat("version ", version, ", known are 0 to 3"));
  const Layout& layout = kLayouts[version];
  if (head[layout.sizes] != 8 || head[layout.sizes + 1] != 8) refuse("addresses must have 8 bytes");
  if (little_endian(head, layout.base) != 0) refuse("the base address must be 0");
  const uint64_t end = little_endian(head, layout.end);
  if (end > static_cast<uint64_t>(file.size())) {
    refuse(concat("it says that the file has ", end, " bytes, it has ", file.size()));
  }
}

[[noreturn]] void refuse_other_file(const ReadOnlyFile& file, std::string_view head) {
  if (head.size() == static_cast<size_t>(kSealBytes)) {
    std::string behind(std::min<size_t>(kHdf5Signature.size(), file.size() - kSealBytes), '\0');
    file.read(kSealBytes, static_cast<int64_t>(behind.size()), behind.data());
    if (behind == kHdf5Signature) {
      throw DataError(concat(file.path(), ": damaged: its first line is not a shard's"));
    }
  }
  const bool is_text = std::none_of(head.begin(), head.end(), [](char byte) {
    return static_cast<uint8_t>(byte) < 9 || (byte > '\r' && byte < ' ');
  });
  throw DataError(concat(file.path(),
                         file.size() == 0 ? ": is empty, not a shard of tokens"
                         : is_text
                             ? ": is text, not a shard of tokens; turn it into shards with `t2r "
                               "prepare lm --inputs ...` first"
                             : ": is not a shard of tokens (file signature not found); shards are "
                               "made by `t2r prepare lm`"));
}

[[noreturn]] void throw_write_error(const std::filesystem::path& path) {
  throw WriteError(concat(path.string(), ": cannot write: ", std::strerror(errno)));
}

}  // namespace

void seal_shard(const std::filesystem::path& path) {
  const ReadOnlyFile file(path);
  const std::string seal = render_seal(file.size(), hash_behind_seal(file));
  const int descriptor = ::open(path.c_str(), O_WRONLY | O_CLOEXEC);
  if (descriptor < 0) throw_write_error(path);
  const ssize_t done = ::pwrite(descriptor, seal.data(), seal.size(), 0);
  if (::close(descriptor) != 0 || done != kSealBytes) throw_write_error(path);
}

ShardSeal read_seal(const ReadOnlyFile& file) {
  std::string head(static_cast<size_t>(std::min(kSealBytes, file.size())), '\0');
  file.read(0, static_cast<int64_t>(head.size()), head.data());
  if (head.starts_with(kHdf5Signature)) {
    check_superblock(file, head);
    return {};
  }
  if (!head.starts_with(kFirstLine)) refuse_other_file(file, head);
  const std::string num_bytes = value_of(head, "\nbytes ");
  const std::string hash = value_of(head, "\nxxh3-128 ");
  if (num_bytes != std::to_string(file.size())) {
    throw DataError(concat(file.path(),
                           ": damaged: it has ",
                           file.size(),
                           " bytes, its beginning names another number"));
  }
  if (hash.size() != 32 || head != render_seal(file.size(), hash)) {
    throw DataError(concat(file.path(), ": damaged: its first ", kSealBytes, " bytes are changed"));
  }
  return {true, hash};
}

void verify_seal(const ReadOnlyFile& file, const ShardSeal& seal) {
  const std::string hash = hash_behind_seal(file);
  if (hash == seal.hash) return;
  throw DataError(concat(
      file.path(), ": damaged: the content's hash is ", hash, ", its beginning says ", seal.hash));
}

}  // namespace t2r::data
