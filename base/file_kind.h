#pragma once

#include <optional>
#include <string>
#include <string_view>

namespace t2r {

/// What a download that went wrong left in place of a file, with the remedy: a Git LFS pointer, an
/// HTML or XML page, a compressed archive, a Python pickle. Empty if it is none of these.
/// @param beginning  the file's first bytes, 512 are enough
std::optional<std::string> describe_wrong_file(std::string_view beginning);

}  // namespace t2r
