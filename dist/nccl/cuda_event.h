#pragma once

#include <cuda_runtime_api.h>

namespace t2r::dist {

/// Throws unless `code` is cudaSuccess. Local.
/// @throws CudaError  with call, place, host and CUDA's text
void check_cuda(cudaError_t code,
                const char* call,
                const char* file = __builtin_FILE(),
                int line = __builtin_LINE());

/// Owner of a CUDA event that orders streams and measures no time. Local.
class CudaEvent {
 public:
  /// Of the calling thread's device, as all streams that it is used with.
  CudaEvent();
  ~CudaEvent();
  CudaEvent(const CudaEvent&) = delete;
  CudaEvent& operator=(const CudaEvent&) = delete;

  /// Marks what `stream` was given so far. May be called again, for another mark.
  void record(cudaStream_t stream);

  /// Lets what `stream` is given from now on wait for the mark.
  void block(cudaStream_t stream) const;

  /// Whether the mark was reached. Not for a mark in a stream that is being captured.
  bool is_reached() const;

 private:
  cudaEvent_t event_ = nullptr;
};

}  // namespace t2r::dist
