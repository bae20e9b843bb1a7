#pragma once

#include <cstdint>
#include <filesystem>
#include <memory>
#include <string>

namespace t2r::data {

/// Version of the HDF5 library that is loaded, e.g. "1.10.8".
std::string hdf5_version();

/// Integer types that our datasets use; little-endian on disk.
enum class H5Integer { kUint16, kUint32, kUint64 };

/// Bytes of one element.
int64_t num_bytes_of(H5Integer type);

/// Where the elements of a one-dimensional contiguous dataset lie in its file.
struct H5Extent {
  H5Integer type = H5Integer::kUint16;
  int64_t num_elements = 0;
  int64_t file_offset = 0;  // bytes from the start of the file
};

/// One HDF5 file with attributes on its root group and one-dimensional contiguous datasets.
///
/// Files are written in the 1.8 format, whose metadata blocks all carry a checksum, with
/// fixed-length strings (variable-length ones lie in a heap that has none) and without time stamps,
/// so that equal content gives equal bytes. The library's own error printing is off; its last
/// message becomes part of the exception. Locks are not taken: cluster file systems often refuse
/// them, and our files are complete before they appear under their name.
class H5File {
 public:
  /// Creates or empties `path`; its first user_block_bytes (0, 512 or a larger power of two) are
  /// left to the caller, and `H5Extent::file_offset` counts them.
  /// @throws WriteError  with the path, the failing call and the library's cause (also the writers
  /// below)
  static H5File create(const std::filesystem::path& path, int64_t user_block_bytes = 0);

  /// @throws DataError  if it is no HDF5 file or is damaged (also the readers below)
  static H5File open(const std::filesystem::path& path);

  H5File(H5File&&) noexcept;
  H5File& operator=(H5File&&) noexcept;
  ~H5File();

  void write_attribute(const std::string& name, int64_t value);
  void write_attribute(const std::string& name, const std::string& value);

  /// Allocates a dataset of fixed size; its elements are undefined until written.
  void create_dataset(const std::string& name, H5Integer type, int64_t num_elements);

  /// Writes `count` elements, in the dataset's own type, from position `first` on.
  void write_elements(const std::string& name, int64_t first, int64_t count, const void* elements);

  /// Whether the root group has an attribute of this name.
  bool has_attribute(const std::string& name) const;

  /// @throws DataError  if the attribute is missing or is not one integer
  int64_t read_integer(const std::string& name) const;

  /// @throws DataError  if the attribute is missing, not a fixed-length text or longer than 64 KiB
  std::string read_text(const std::string& name) const;

  /// @throws DataError  if it is missing, not contiguous, not one-dimensional or of another type
  H5Extent find_dataset(const std::string& name) const;

  /// Writes everything out and closes; the object is unusable afterwards. The destructor closes
  /// too, but can't tell of errors.
  void close();

 private:
  struct Impl;
  explicit H5File(std::unique_ptr<Impl> impl);
  std::unique_ptr<Impl> impl_;
};

}  // namespace t2r::data
