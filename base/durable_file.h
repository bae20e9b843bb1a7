#pragma once

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <functional>
#include <string>
#include <string_view>

namespace t2r {

/// A file that appears under its name only when it is complete.
///
/// Bytes go to `path` + ".tmp.<pid>"; commit() syncs them, renames and syncs the parent folder.
/// Destroyed without commit(), it removes the temporary file. Source: RELIABILITY protocol in
/// ARCHITECTURE.md (write, fsync, rename, fsync parent).
class DurableFile {
 public:
  /// @throws WriteError  if the temporary file cannot be created
  explicit DurableFile(std::filesystem::path path);
  ~DurableFile();
  DurableFile(const DurableFile&) = delete;
  DurableFile& operator=(const DurableFile&) = delete;

  /// @throws WriteError  on a short write (disk full, I/O error); names path and cause
  void write(const void* bytes, size_t num_bytes);
  void write(std::string_view text) { write(text.data(), text.size()); }

  /// @throws WriteError  if syncing, closing or renaming fails; nothing appears under the name then
  void commit();

 private:
  std::filesystem::path path_;
  std::filesystem::path temporary_;
  int descriptor_ = -1;
};

/// Name that a writer gives to its temporary neighbour of `path`; unique per process.
std::filesystem::path temporary_sibling(const std::filesystem::path& path);

/// Writes `text` to `path` through DurableFile.
void write_file_durably(const std::filesystem::path& path, std::string_view text);

/// Flushes a file's or a folder's content to the device.
/// @throws WriteError
void sync_path(const std::filesystem::path& path);

/// Renames a complete, synced file or folder into place and syncs the parent.
/// @throws WriteError
void rename_durably(const std::filesystem::path& from, const std::filesystem::path& to);

/// @param action  for the message, e.g. "open"
/// @param cause   an errno
/// @throws DataError        if nothing of this name can be read: none there, a folder
/// @throws UnreadableError  for any other cause
[[noreturn]] void throw_read_error(const std::filesystem::path& path,
                                   const char* action,
                                   int cause);

/// Opens a file under a name that t2r or its format gives, not the user: what is no file there (a
/// named pipe, a device, a folder) is refused, and nothing waits for the other end of a pipe.
/// @param flags  of open(2): O_RDONLY, or others for writing
/// @return       its descriptor, closed on exec
/// @throws DataError        if it is no regular file; says what it is and the remedy
/// @throws UnreadableError  as throw_read_error(), if it cannot be opened to be read
/// @throws WriteError       if it cannot be opened to be written
int open_regular_file(const std::filesystem::path& path, int flags);

/// Size of a file that open_regular_file() would take.
/// @throws DataError, UnreadableError  as there
uint64_t regular_file_size(const std::filesystem::path& path);

/// Gives `take` the content of a regular file, piece by piece.
/// @throws DataError, UnreadableError  as open_regular_file()
void read_blocks(const std::filesystem::path& path,
                 const std::function<void(std::string_view)>& take);

/// Content of a whole regular file.
/// @throws DataError, UnreadableError  as open_regular_file()
std::string read_file(const std::filesystem::path& path);

/// The first bytes of a regular file, at most `num_bytes`; nothing of one that cannot be read,
/// which is left to its reader.
std::string read_beginning(const std::filesystem::path& path, size_t num_bytes);

/// Content of an input that the user names, which may be a pipe, as `<(...)` and /dev/stdin are.
/// @throws DataError, UnreadableError  as throw_read_error()
std::string read_named_input(const std::filesystem::path& path);

}  // namespace t2r
