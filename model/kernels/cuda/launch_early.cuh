#pragma once

// Programmatic dependent launch (Hopper): the start of a kernel overlaps the end of the one before
// it in the stream.

#include <cuda_runtime.h>

namespace t2r::kernels::cuda {

/// Until the kernels before this one in the stream have ended. What they may have changed is read
/// behind it; the next kernel may be brought in from now on, and waits here itself. Nothing to wait
/// for unless launched early.
__device__ __forceinline__ void wait_for_earlier_kernels() {
#if __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.launch_dependents;\ngriddepcontrol.wait;\n" ::: "memory");
#endif
}

/// Launches a kernel all of whose blocks call wait_for_earlier_kernels(), overlapping if `early`;
/// `cluster` blocks in x form a cluster. Both need Hopper.
template <class... Arguments>
cudaError_t launch_clusters(bool early,
                            int cluster,
                            void (*kernel)(Arguments...),
                            dim3 blocks,
                            int threads,
                            int bytes,
                            cudaStream_t stream,
                            const Arguments&... arguments) {
  cudaLaunchAttribute attributes[2] = {};
  int count = 0;
  if (cluster > 1) {
    attributes[count].id = cudaLaunchAttributeClusterDimension;
    attributes[count].val.clusterDim.x = cluster;
    attributes[count].val.clusterDim.y = attributes[count].val.clusterDim.z = 1;
    ++count;
  }
  if (early) {
    attributes[count].id = cudaLaunchAttributeProgrammaticStreamSerialization;
    attributes[count++].val.programmaticStreamSerializationAllowed = 1;
  }
  cudaLaunchConfig_t config{};
  config.gridDim = blocks;
  config.blockDim = dim3(threads);
  config.dynamicSmemBytes = bytes;
  config.stream = stream;
  config.attrs = attributes;
  config.numAttrs = count;
  return cudaLaunchKernelEx(&config, kernel, arguments...);
}
template <class... Arguments>
cudaError_t launch_early(bool early,
                         void (*kernel)(Arguments...),
                         dim3 blocks,
                         int threads,
                         int bytes,
                         cudaStream_t stream,
                         const Arguments&... arguments) {
  return launch_clusters(early, 1, kernel, blocks, threads, bytes, stream, arguments...);
}

}  // namespace t2r::kernels::cuda
