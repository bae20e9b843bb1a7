#pragma once

#include <c10/core/CachingDeviceAllocator.h>
#include <c10/util/Exception.h>

#include <string>

#include "base/error.h"

namespace t2r::launch {

/// The GPU has no memory left. Says what it was for, if that is known, ending in what to try; in
/// brackets LibTorch's first sentence.
class GpuMemoryError : public Error {
 public:
  explicit GpuMemoryError(const c10::OutOfMemoryError& error, const std::string& what_for = "")
      : Error(ExitCode::kInternal, text(error.what_without_backtrace(), what_for)) {}

 private:
  static std::string text(const std::string& what, const std::string& what_for) {
    return concat("out of GPU memory", what_for, " (", what.substr(0, what.find(". ")), ")");
  }
};

/// Does `body`; without GPU memory for it, the message says what it was for and ends in what to
/// try.
/// @throws GpuMemoryError
template <class Body>
auto or_say_what_for(const std::string& what_for, const Body& body) {
  try {
    return body();
  } catch (const c10::OutOfMemoryError& error) {
    throw GpuMemoryError(error, what_for);
  }
}

/// Whether LibTorch could not get memory of this host; it has no type of its own for that.
inline bool is_out_of_host_memory(const c10::Error& error) {
  return std::string(error.what_without_backtrace()).find("can't allocate memory") !=
         std::string::npos;
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
