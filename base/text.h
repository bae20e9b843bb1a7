#pragma once

#include <string>
#include <vector>

namespace t2r {

/// The texts with `separator` between them: "a, b, c".
std::string joined(const std::vector<std::string>& texts, const char* separator = ", ");

/// The shortest text that gives the same float64: 0.9999999, 1, 1e-30. What concat() makes of a
/// float64 has six digits, too few for a value that is refused or a limit.
std::string number_text(double value);

}  // namespace t2r
