#pragma once

#include <cstddef>
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

/// Gives `take` the content of a file, piece by piece.
/// @throws DataError, UnreadableError  as throw_read_error()
void read_blocks(const std::filesystem::path& path,
                 const std::function<void(std::string_view)>& take);

/// Content of a whole file.
/// @throws DataError, UnreadableError  as throw_read_error()
std::string read_file(const std::filesystem::path& path);

}  // namespace t2r
