#include "data/read_only_file.h"

#include <fcntl.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <utility>

#include "base/durable_file.h"
#include "base/error.h"

namespace t2r::data {
ReadOnlyFile::ReadOnlyFile(const std::filesystem::path& path)
    : path_(path.string()), descriptor_(open_regular_file(path_, O_RDONLY)) {
  try {
    identity_ = identify(descriptor_, path_);
  } catch (...) {
    ::close(descriptor_);
    throw;
  }
}

ReadOnlyFile::~ReadOnlyFile() {
  if (descriptor_ >= 0) ::close(descriptor_);
}

ReadOnlyFile::ReadOnlyFile(ReadOnlyFile&& other) noexcept
    : path_(std::move(other.path_)),
      descriptor_(std::exchange(other.descriptor_, -1)),
      identity_(other.identity_) {}

ReadOnlyFile& ReadOnlyFile::operator=(ReadOnlyFile&& other) noexcept {
  std::swap(path_, other.path_);
  std::swap(descriptor_, other.descriptor_);
  std::swap(identity_, other.identity_);
  return *this;
}

ReadOnlyFile::Identity ReadOnlyFile::identify(int descriptor, const std::string& path) {
  struct stat about {};
  if (::fstat(descriptor, &about) != 0) {
    throw DataError(concat(path, ": cannot read: ", std::strerror(errno)));
  }
  return {about.st_dev, about.st_ino, about.st_size, about.st_mtim.tv_sec, about.st_mtim.tv_nsec};
}

void ReadOnlyFile::close_between_reads() {
  if (descriptor_ >= 0) ::close(std::exchange(descriptor_, -1));
}

int ReadOnlyFile::open_again() const {
  const int descriptor = open_regular_file(path_, O_RDONLY);
  try {
    if (identify(descriptor, path_) == identity_) return descriptor;
  } catch (const DataError&) {
    ::close(descriptor);
    throw;
  }
  ::close(descriptor);
  throw DataError(concat(path_, ": was replaced or changed while it was in use"));
}

void ReadOnlyFile::read(int64_t offset, int64_t count, char* out) const {
  const int descriptor = descriptor_ >= 0 ? descriptor_ : open_again();
  ssize_t done = 1;
  int cause = 0;
  while (count > 0 && done > 0) {
    done = ::pread(descriptor, out, static_cast<size_t>(count), offset);
    cause = errno;
    if (done < 0 && cause == EINTR)
      done = 1;
    else if (done > 0) {
      out += done;
      offset += done;
      count -= done;
    }
  }
  if (descriptor != descriptor_) ::close(descriptor);
  if (count == 0) return;
  throw DataError(concat(path_,
                         ": cannot read ",
                         count,
                         " bytes at offset ",
                         offset,
                         ": ",
                         done < 0 ? std::strerror(cause) : "the file ends before"));
}

size_t num_descriptors_to_keep(size_t num_files) {
  constexpr size_t kShare = 4;
  rlimit limit{};
  if (::getrlimit(RLIMIT_NOFILE, &limit) != 0) return 0;
  if (limit.rlim_cur / kShare < num_files && limit.rlim_cur < limit.rlim_max) {
    rlimit raised = limit;
    raised.rlim_cur = std::min<rlim_t>(limit.rlim_max, num_files * kShare);
    if (::setrlimit(RLIMIT_NOFILE, &raised) == 0) limit = raised;
  }
  return std::min<size_t>(num_files, limit.rlim_cur / kShare);
}

}  // namespace t2r::data
