#pragma once

#include <string>
#include <string_view>

namespace t2r {

/// An untrusted `text` for a message: in quotation marks, escaped to ASCII, cut after 80 bytes.
/// Not called quoted(): std::quoted would be chosen for a std::string.
std::string quoted_name(std::string_view text);

/// `text` for one line of a terminal: control characters (also UTF-8's, U+0080 to U+009F) as \n,
/// \t, \x1b; all else as it is.
std::string one_line(std::string_view text);

}  // namespace t2r
