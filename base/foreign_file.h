#pragma once

#include <filesystem>
#include <optional>
#include <string>
#include <string_view>

namespace t2r {

/// What a file is when it is not what its name says, in words with the remedy: a Git LFS pointer, a
/// web page, a zip archive or a pickle. Empty if it is none of these.
/// @param begin  the file's first bytes; 512 are enough
std::optional<std::string> foreign_content(std::string_view begin);

/// @param file  name for the message
/// @throws DataError  if `begin` is foreign content; says what it is
void refuse_foreign_content(std::string_view begin, const std::string& file);

/// The same for a file that is about to be opened; one that cannot be read is left to its reader.
void refuse_foreign_file(const std::filesystem::path& file);

}  // namespace t2r
