#pragma once

#include <filesystem>
#include <functional>
#include <vector>

#include "launch/backend.h"

namespace t2r::launch {

/// Runs `work`, which waits for what it starts, and lists the device's kernels and copies in it,
/// the longest first; also those that a CUDA graph replays.
///
/// @param file  gets a trace for chrome://tracing or ui.perfetto.dev
/// @throws WriteError  if `file` cannot be written
std::vector<KernelTime> trace_gpu(const std::filesystem::path& file,
                                  const std::function<void()>& work);

}  // namespace t2r::launch
