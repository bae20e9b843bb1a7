#pragma once

#include <stdlib.h>

#include <algorithm>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <string>
#include <string_view>
#include <system_error>
#include <vector>

#include "base/error.h"

namespace t2r::test {

/// The variable's value as a path, or `otherwise` if it is not set.
inline std::filesystem::path path_from_environment(const char* name,
                                                   const std::filesystem::path& otherwise) {
  const char* value = std::getenv(name);
  return value != nullptr ? std::filesystem::path(value) : otherwise;
}

/// T2R_SHARED, or ../shared beside the sources: what is not ours to distribute; may not be there.
inline std::filesystem::path shared_folder() {
  return path_from_environment("T2R_SHARED",
                               std::filesystem::path(T2R_SOURCE_DIR) / ".." / "shared");
}

inline void write_text(const std::filesystem::path& path, std::string_view text) {
  std::ofstream(path, std::ios::binary) << text;
}

/// A folder under the system's temporary one; it goes away with the object, and all that is in it.
class TemporaryFolder {
 public:
  TemporaryFolder() {
    std::string pattern = (std::filesystem::temp_directory_path() / "t2r-test-XXXXXX").string();
    if (::mkdtemp(pattern.data()) == nullptr) throw WriteError(pattern + ": mkdtemp failed");
    path_ = pattern;
  }
  ~TemporaryFolder() {
    std::error_code ignored;
    std::filesystem::remove_all(path_, ignored);
  }
  TemporaryFolder(const TemporaryFolder&) = delete;
  TemporaryFolder& operator=(const TemporaryFolder&) = delete;

  std::filesystem::path operator/(std::string_view name) const { return path_ / name; }
  const std::filesystem::path& path() const { return path_; }

  /// Writes a file and returns where it is.
  std::filesystem::path write(std::string_view name, std::string_view text) const {
    write_text(path_ / name, text);
    return path_ / name;
  }

  /// Names of all files and folders in it, sorted.
  std::vector<std::string> names() const {
    std::vector<std::string> names;
    for (const auto& entry : std::filesystem::directory_iterator(path_)) {
      names.push_back(entry.path().filename().string());
    }
    std::sort(names.begin(), names.end());
    return names;
  }

 private:
  std::filesystem::path path_;
};

}  // namespace t2r::test
