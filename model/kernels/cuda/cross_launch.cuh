#pragma once

#include "model/kernels/cuda/cross_backward.cuh"
#include "model/kernels/cuda/cross_forward.cuh"
#include "model/kernels/cuda/cross_instances.h"

namespace t2r::kernels::cuda {

template <class Memory>
cudaError_t launch_cross_kernel(void (*kernel)(CrossArguments), dim3 grid, int threads, const CrossArguments& a, cudaStream_t stream) {
  static_assert(Memory::kBytes <= 163 * 1024, "what every GPU since Ampere's A100 has");
  const cudaError_t error = cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, Memory::kBytes);
  if (error != cudaSuccess) return error;
  kernel<<<grid, threads, Memory::kBytes, stream>>>(a);
  return cudaGetLastError();
}

template <int kHead, int kFeatures, int kChunk, bool kMap>
cudaError_t launch_cross(CrossPass pass, const CrossArguments& a, cudaStream_t stream) {
  constexpr int kThreads = kChunk * 2;
  const dim3 queries(a.shape.batch * a.shape.query_heads, a.plan.queries.segments);
  const dim3 source(a.shape.batch * a.shape.state_heads, a.plan.source.segments);
  switch (pass) {
    case CrossPass::kSums:
      return launch_cross_kernel<CrossSumsMemory<kHead, kFeatures, kChunk, kMap>>(&cross_sums_kernel<kHead, kFeatures, kChunk, kMap>,
                                                                                  source, kThreads, a, stream);
    case CrossPass::kQueries:
      return launch_cross_kernel<CrossQueryMemory<kHead, kFeatures, kChunk, kMap>>(&cross_query_kernel<kHead, kFeatures, kChunk, kMap>,
                                                                                   queries, kThreads, a, stream);
    case CrossPass::kQueriesBackward:
      return launch_cross_kernel<CrossQueryBackwardMemory<kHead, kFeatures, kChunk, kMap>>(
          &cross_query_backward_kernel<kHead, kFeatures, kChunk, kMap>, queries, kThreads, a, stream);
    case CrossPass::kSourceBackward:
      return launch_cross_kernel<CrossSourceBackwardMemory<kHead, kFeatures, kChunk, kMap>>(
          &cross_source_backward_kernel<kHead, kFeatures, kChunk, kMap>, source, kThreads, a, stream);
  }
  return cudaErrorInvalidValue;
}

}  // namespace t2r::kernels::cuda
