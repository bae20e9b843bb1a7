#pragma once

#include <cuda_runtime.h>

namespace t2r::kernels::cuda {

/// Until the kernels before this one in the stream have ended. What may have changed is read behind it; the next kernel may be
/// brought in from now on, and waits here itself. Nothing to wait for unless launched by launch_overlapping().
__device__ __forceinline__ void wait_for_kernels_before() {
#if __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.launch_dependents;\ngriddepcontrol.wait;\n" ::: "memory");
#endif
}

/// Launches a kernel all of whose blocks call wait_for_kernels_before(). With `overlaps` (Hopper) its start overlaps the end of the
/// kernel before it.
template <class Arguments>
cudaError_t launch_overlapping(void (*kernel)(Arguments), unsigned blocks, int threads, int bytes, bool overlaps, cudaStream_t stream,
                               const Arguments& arguments) {
  cudaLaunchAttribute early{};
  early.id = cudaLaunchAttributeProgrammaticStreamSerialization;
  early.val.programmaticStreamSerializationAllowed = 1;
  cudaLaunchConfig_t config{};
  config.gridDim = dim3(blocks);
  config.blockDim = dim3(threads);
  config.dynamicSmemBytes = bytes;
  config.stream = stream;
  config.attrs = &early;
  config.numAttrs = overlaps ? 1 : 0;
  return cudaLaunchKernelEx(&config, kernel, arguments);
}

}  // namespace t2r::kernels::cuda
