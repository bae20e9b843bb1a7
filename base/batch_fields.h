#pragma once

namespace t2r {

/// Names of a batch's fields, as loaders give them and models look for them; int64.
inline constexpr const char* kInputs = "inputs";
inline constexpr const char* kTargets = "targets";  ///< below 0: the target does not count

}  // namespace t2r
