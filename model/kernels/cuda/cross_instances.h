#pragma once

#include "model/kernels/cuda/causal_instances.h"  // the list of sizes is the same
#include "model/kernels/cuda/cross_attention.h"

/// cross_dispatch.cu chooses, cross_head_*.cu instantiate.
#define T2R_INSTANTIATE_CROSS(HEAD, FEATURES, CHUNK)                                                              \
  template cudaError_t launch_cross<HEAD, FEATURES, CHUNK, true>(CrossPass, const CrossArguments&, cudaStream_t); \
  template cudaError_t launch_cross<HEAD, FEATURES, CHUNK, false>(CrossPass, const CrossArguments&, cudaStream_t);

namespace t2r::kernels::cuda {

enum class CrossPass { kSums, kQueries, kQueriesBackward, kSourceBackward };

template <int kHead, int kFeatures, int kChunk, bool kMap>
cudaError_t launch_cross(CrossPass pass, const CrossArguments& arguments, cudaStream_t stream);

}  // namespace t2r::kernels::cuda
