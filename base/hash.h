#pragma once

#include <cstddef>
#include <filesystem>
#include <memory>
#include <string>
#include <string_view>

namespace t2r {

/// Streaming 128-bit content hash (XXH3). Guards against damage, not against attackers.
class Hasher {
 public:
  Hasher();
  ~Hasher();
  Hasher(const Hasher&) = delete;
  Hasher& operator=(const Hasher&) = delete;

  void update(const void* bytes, size_t num_bytes);
  void update(std::string_view text) { update(text.data(), text.size()); }

  /// 32 lower-case hexadecimal digits of everything seen so far.
  std::string hex() const;

 private:
  struct State;
  std::unique_ptr<State> state_;
};

/// Hash of one buffer.
std::string hash_bytes(const void* bytes, size_t num_bytes);

/// Hash of a file's content.
/// @throws DataError, UnreadableError  as throw_read_error() in base/durable_file.h
std::string hash_file(const std::filesystem::path& path);

}  // namespace t2r
