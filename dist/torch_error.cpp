#include "dist/torch_error.h"

namespace t2r::dist {

GpuMemoryError gpu_memory_error(const c10::OutOfMemoryError& error, const std::string& what_for) {
  const std::string what = error.what_without_backtrace();
  return GpuMemoryError(
      concat("out of GPU memory", what_for, " (", what.substr(0, what.find(". ")), ")"));
}

bool is_out_of_host_memory(const c10::Error& error) {
  return std::string(error.what_without_backtrace()).find("can't allocate memory") !=
         std::string::npos;
}

}  // namespace t2r::dist
