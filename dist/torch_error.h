#pragma once

#include <c10/util/Exception.h>

#include <string>

#include "base/error.h"

namespace t2r::dist {

/// LibTorch's error as ours. @param what_for  what memory was for, ending in what to try
GpuMemoryError gpu_memory_error(const c10::OutOfMemoryError& error,
                                const std::string& what_for = "");

/// Whether LibTorch could not get memory of this host; it has no type of its own for that.
bool is_out_of_host_memory(const c10::Error& error);

}  // namespace t2r::dist
