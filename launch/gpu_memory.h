#pragma once

#include <c10/core/CachingDeviceAllocator.h>
#include <c10/util/Exception.h>

#include <string>

#include "dist/torch_error.h"

namespace t2r::launch {

/// Does `body`; without GPU memory for it, the message says what it was for and ends in what to
/// try.
/// @throws GpuMemoryError
template <class Body>
auto or_say_what_for(const std::string& what_for, const Body& body) {
  try {
    return body();
  } catch (const c10::OutOfMemoryError& error) {
    throw dist::gpu_memory_error(error, what_for);
  }
}

/// The most bytes that tensors have taken on a GPU since the last reset_peak_memory().
inline int64_t peak_memory_bytes(const c10::Device& gpu) {
  const auto stats = c10::getDeviceAllocator(gpu.type())->getDeviceStats(gpu.index());
  return stats.allocated_bytes[static_cast<size_t>(c10::CachingAllocator::StatType::AGGREGATE)]
      .peak;
}

inline void reset_peak_memory(const c10::Device& gpu) {
  c10::getDeviceAllocator(gpu.type())->resetPeakStats(gpu.index());
}

}  // namespace t2r::launch
