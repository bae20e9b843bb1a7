#pragma once

#include <sys/types.h>

#include <cstddef>
#include <cstdint>
#include <ctime>
#include <filesystem>
#include <string>

namespace t2r::data {

/// A file that is read at given places and stays the one that was opened.
///
/// Its descriptor stays open unless close_between_reads() is called: then each read opens the file
/// for itself and refuses it if it is no longer the same file, of the same size and time. read()
/// may be called from several threads.
class ReadOnlyFile {
 public:
  /// @throws DataError, UnreadableError  as open_regular_file()
  explicit ReadOnlyFile(const std::filesystem::path& path);
  ~ReadOnlyFile();
  ReadOnlyFile(ReadOnlyFile&& other) noexcept;
  ReadOnlyFile& operator=(ReadOnlyFile&& other) noexcept;

  const std::string& path() const { return path_; }

  /// Bytes that it had when it was opened.
  int64_t size() const { return identity_.size; }

  /// Copies `count` bytes from `offset` on to `out`.
  /// @throws DataError  on an I/O error, if the file ends before, or if it was replaced meanwhile
  void read(int64_t offset, int64_t count, char* out) const;

  /// Gives the descriptor back: for more files than a process may have open.
  void close_between_reads();

 private:
  struct Identity {
    dev_t device = 0;
    ino_t inode = 0;
    int64_t size = 0;
    int64_t seconds = 0;  // of the last change
    int64_t nanoseconds = 0;
    bool operator==(const Identity&) const = default;
  };
  static Identity identify(int descriptor, const std::string& path);
  int open_again() const;

  std::string path_;
  int descriptor_ = -1;
  Identity identity_;
};

/// How many of `num_files` files may keep their descriptors: a quarter of what the process may have
/// open. Raises the process's soft limit as far as the system lets it if all of them do not fit.
size_t num_descriptors_to_keep(size_t num_files);

}  // namespace t2r::data
