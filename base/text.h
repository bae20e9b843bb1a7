#pragma once

#include <string>
#include <vector>

namespace t2r {

/// The texts with `separator` between them: "a, b, c".
std::string joined(const std::vector<std::string>& texts, const char* separator = ", ");

/// The shortest text that gives the same float64: 0.9999999, 1, 1e-30. What concat() makes of a
/// float64 has six digits, too few for a value that is refused or a limit.
std::string number_text(double value);

/// How every refusal of a value reads: "KEY = VALUE, allowed: ALLOWED". `where` says what the limit
/// comes from, if not from the key alone: "KEY = VALUE, allowed on a GPU: ALLOWED".
std::string not_allowed(const std::string& key,
                        const std::string& value,
                        const std::string& allowed,
                        const std::string& where = "");

}  // namespace t2r
