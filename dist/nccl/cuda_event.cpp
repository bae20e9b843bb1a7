#include "dist/nccl/cuda_event.h"

#include "dist/mpi_error.h"
#include "dist/nccl/nccl_error.h"

namespace t2r::dist {

void check_cuda(cudaError_t code, const char* call, const char* file, int line) {
  if (code == cudaSuccess) return;
  cudaGetLastError();  // the error is reported here, not by whatever call comes next
  throw CudaError(concat(call,
                         " failed on host ",
                         host_name(),
                         " at ",
                         file,
                         ":",
                         line,
                         ": code ",
                         static_cast<int>(code),
                         ", ",
                         cudaGetErrorString(code)));
}

CudaEvent::CudaEvent() {
  check_cuda(cudaEventCreateWithFlags(&event_, cudaEventDisableTiming), "cudaEventCreateWithFlags");
}

CudaEvent::~CudaEvent() {
  if (cudaEventDestroy(event_) != cudaSuccess) cudaGetLastError();
}

void CudaEvent::record(cudaStream_t stream) {
  check_cuda(cudaEventRecord(event_, stream), "cudaEventRecord");
}

void CudaEvent::block(cudaStream_t stream) const {
  check_cuda(cudaStreamWaitEvent(stream, event_, 0), "cudaStreamWaitEvent");
}

bool CudaEvent::is_reached() const {
  const cudaError_t code = cudaEventQuery(event_);
  if (code == cudaErrorNotReady) {
    cudaGetLastError();  // no error: it would be reported by whatever call comes next
    return false;
  }
  check_cuda(code, "cudaEventQuery");
  return true;
}

}  // namespace t2r::dist
