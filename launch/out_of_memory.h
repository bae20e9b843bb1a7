#pragma once

#include <c10/util/Exception.h>

#include <string>

#include "base/error.h"

namespace t2r::launch {

/// "out of GPU memory" and what it was for, ending in what to try; in brackets LibTorch's first
/// sentence.
inline std::string out_of_memory_text(const c10::OutOfMemoryError& error,
                                      const std::string& what_for) {
  const std::string what = error.what_without_backtrace();
  return concat("out of GPU memory", what_for, " (", what.substr(0, what.find(". ")), ")");
}

}  // namespace t2r::launch
