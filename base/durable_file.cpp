#include "base/durable_file.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <utility>
#include <vector>

#include "base/error.h"

namespace t2r {
namespace {

constexpr size_t kBlockBytes = 1 << 20;

[[noreturn]] void throw_write_error(const std::filesystem::path& path, const char* action) {
  throw WriteError(concat(path.string(), ": cannot ", action, ": ", std::strerror(errno)));
}

/// Refuses what is no regular file, as stat(2) describes it.
void check_is_regular(const std::filesystem::path& path, const struct stat& about) {
  if (S_ISREG(about.st_mode)) return;
  const char* const kind = S_ISDIR(about.st_mode)    ? "a folder"
                           : S_ISFIFO(about.st_mode) ? "a named pipe"
                           : S_ISSOCK(about.st_mode) ? "a socket"
                                                     : "a device";
  throw DataError(concat(
      path.string(), ": is ", kind, ", and must be a regular file; move it away, or name another"));
}

/// What `descriptor` still has, piece by piece; closes it.
void read_to_end(int descriptor,
                 const std::filesystem::path& path,
                 const std::function<void(std::string_view)>& take) {
  std::vector<char> buffer(kBlockBytes);
  ssize_t num_read = 0;
  do {
    num_read = ::read(descriptor, buffer.data(), buffer.size());
    if (num_read > 0) take({buffer.data(), static_cast<size_t>(num_read)});
  } while (num_read > 0 || (num_read < 0 && errno == EINTR));
  const int cause = errno;
  ::close(descriptor);
  if (num_read < 0) throw_read_error(path, "read", cause);
}

}  // namespace

std::filesystem::path temporary_sibling(const std::filesystem::path& path) {
  return path.string() + ".tmp." + std::to_string(::getpid());
}

DurableFile::DurableFile(std::filesystem::path path)
    : path_(std::move(path)), temporary_(temporary_sibling(path_)) {
  descriptor_ = ::open(temporary_.c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0644);
  if (descriptor_ < 0) throw_write_error(path_, "create");
}

DurableFile::~DurableFile() {
  if (descriptor_ >= 0) ::close(descriptor_);
  if (!temporary_.empty()) ::unlink(temporary_.c_str());
}

void DurableFile::write(const void* bytes, size_t num_bytes) {
  require(descriptor_ >= 0, "DurableFile::write after commit");
  const char* position = static_cast<const char*>(bytes);
  while (num_bytes > 0) {
    const ssize_t written = ::write(descriptor_, position, num_bytes);
    if (written < 0 && errno == EINTR) continue;
    if (written < 0) throw_write_error(path_, "write");
    position += written;
    num_bytes -= static_cast<size_t>(written);
  }
}

void DurableFile::commit() {
  require(descriptor_ >= 0, "DurableFile::commit called twice");
  if (::fsync(descriptor_) != 0) throw_write_error(path_, "sync");
  const int descriptor = std::exchange(descriptor_, -1);
  if (::close(descriptor) != 0) throw_write_error(path_, "close");
  rename_durably(temporary_, path_);
  temporary_.clear();
}

void write_file_durably(const std::filesystem::path& path, std::string_view text) {
  DurableFile file(path);
  file.write(text);
  file.commit();
}

void sync_path(const std::filesystem::path& path) {
  const int descriptor = ::open(path.c_str(), O_RDONLY | O_CLOEXEC);
  if (descriptor < 0) throw_write_error(path, "open for syncing");
  const int result = ::fsync(descriptor);
  const int cause = errno;
  ::close(descriptor);
  errno = cause;
  if (result != 0) throw_write_error(path, "sync");
}

void rename_durably(const std::filesystem::path& from, const std::filesystem::path& to) {
  if (::rename(from.c_str(), to.c_str()) != 0) throw_write_error(to, "rename into place");
  const std::filesystem::path parent = to.parent_path();
  sync_path(parent.empty() ? "." : parent);
}

void throw_read_error(const std::filesystem::path& path, const char* action, int cause) {
  const char* const hint = cause == EMFILE ? " (raise `ulimit -n`)" : "";
  const std::string message =
      concat(path.string(), ": cannot ", action, ": ", std::strerror(cause), hint);
  switch (cause) {
    case ENOENT:
    case ENOTDIR:
    case EISDIR:
    case ELOOP:
    case ENAMETOOLONG:
      throw DataError(message);
    default:
      throw UnreadableError(message);
  }
}

int open_regular_file(const std::filesystem::path& path, int flags) {
  // A device may do something when it is opened, and a socket cannot be: looked at first.
  struct stat about {};
  if (::stat(path.c_str(), &about) == 0) check_is_regular(path, about);
  const int descriptor = ::open(path.c_str(), flags | O_NONBLOCK | O_CLOEXEC, 0644);
  if (descriptor < 0) {
    if ((flags & O_ACCMODE) == O_RDONLY) throw_read_error(path, "open", errno);
    throw_write_error(path, (flags & O_APPEND) != 0 ? "open for appending" : "open");
  }
  const bool is_known = ::fstat(descriptor, &about) == 0;
  const int cause = errno;
  try {
    if (!is_known) throw_read_error(path, "look at", cause);
    check_is_regular(path, about);
  } catch (...) {
    ::close(descriptor);
    throw;
  }
  return descriptor;
}

uint64_t regular_file_size(const std::filesystem::path& path) {
  struct stat about {};
  if (::stat(path.c_str(), &about) != 0) throw_read_error(path, "look at", errno);
  check_is_regular(path, about);
  return static_cast<uint64_t>(about.st_size);
}

void read_blocks(const std::filesystem::path& path,
                 const std::function<void(std::string_view)>& take) {
  read_to_end(open_regular_file(path, O_RDONLY), path, take);
}

std::string read_file(const std::filesystem::path& path) {
  std::string content;
  read_blocks(path, [&](std::string_view block) { content += block; });
  return content;
}

std::string read_beginning(const std::filesystem::path& path, size_t num_bytes) {
  std::string beginning(num_bytes, '\0');
  try {
    const int descriptor = open_regular_file(path, O_RDONLY);
    const ssize_t num_read = ::pread(descriptor, beginning.data(), num_bytes, 0);
    ::close(descriptor);
    beginning.resize(num_read > 0 ? static_cast<size_t>(num_read) : 0);
    return beginning;
  } catch (const DataError&) {
    return {};
  }
}

std::string read_named_input(const std::filesystem::path& path) {
  const int descriptor = ::open(path.c_str(), O_RDONLY | O_CLOEXEC);
  if (descriptor < 0) throw_read_error(path, "open", errno);
  std::string content;
  read_to_end(descriptor, path, [&](std::string_view block) { content += block; });
  return content;
}

}  // namespace t2r
