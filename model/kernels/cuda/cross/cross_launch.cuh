#pragma once

#include "model/kernels/cuda/causal/causal_memory.h"
#include "model/kernels/cuda/cross/cross_backward.cuh"
#include "model/kernels/cuda/cross/cross_forward.cuh"
#include "model/kernels/cuda/cross/cross_instances.h"
#include "model/kernels/cuda/launch_early.cuh"

namespace t2r::kernels::cuda {

template <class Memory>
cudaError_t launch_cross_kernel(void (*kernel)(CrossArguments, CrossPart),
                                CrossPart part,
                                const CrossArguments& a,
                                cudaStream_t stream) {
  static_assert(Memory::kBytes <= kAmpereSharedBytes);
  static_assert(Memory::kClusterBytes <= kHopperSharedBytes);
  const int segments =
      part == CrossPart::kSource ? a.plan.source.segments : a.plan.queries.segments;
  const bool cluster = a.plan.whole && segments > 1;
  const int bytes = cluster ? Memory::kClusterBytes : Memory::kBytes;
  const cudaError_t error =
      cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes);
  if (error != cudaSuccess) return error;
  return launch_clusters(a.plan.early,
                         cluster ? segments : 1,
                         kernel,
                         dim3(a.plan.groups * a.shape.state_heads * segments),
                         kCrossThreads,
                         bytes,
                         stream,
                         a,
                         part);
}

template <int kHead, int kFeatures, bool kMap>
cudaError_t launch_cross(CrossPass pass,
                         CrossPart part,
                         const CrossArguments& a,
                         cudaStream_t stream) {
  return pass == CrossPass::kForward
             ? launch_cross_kernel<CrossForwardMemory<kHead, kFeatures, kMap>>(
                   &cross_forward_kernel<kHead, kFeatures, kMap>, part, a, stream)
             : launch_cross_kernel<CrossBackwardMemory<kHead, kFeatures, kMap>>(
                   &cross_backward_kernel<kHead, kFeatures, kMap>, part, a, stream);
}

template <int kHead, int kFeatures>
int cross_blocks(CrossPass pass) {
  return pass == CrossPass::kForward ? CrossForwardMemory<kHead, kFeatures, true>::kBlocks
                                     : CrossBackwardMemory<kHead, kFeatures, true>::kBlocks;
}

template <int kHead, int kFeatures>
int cross_bytes(bool has_map) {
  return has_map ? max_of(CrossForwardMemory<kHead, kFeatures, true>::kBytes,
                          CrossBackwardMemory<kHead, kFeatures, true>::kBytes)
                 : max_of(CrossForwardMemory<kHead, kFeatures, false>::kBytes,
                          CrossBackwardMemory<kHead, kFeatures, false>::kBytes);
}

}  // namespace t2r::kernels::cuda
