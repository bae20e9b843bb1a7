#pragma once

#include "model/kernels/cuda/causal/causal_instances.h"  // the list of sizes is the same
#include "model/kernels/cuda/cross/cross_attention.h"

/// cross_dispatch.cu chooses, cross_head_*.cu instantiate.
#define T2R_INSTANTIATE_CROSS(HEAD, FEATURES)                     \
  template cudaError_t launch_cross<HEAD, FEATURES, true>(        \
      CrossPass, CrossPart, const CrossArguments&, cudaStream_t); \
  template cudaError_t launch_cross<HEAD, FEATURES, false>(       \
      CrossPass, CrossPart, const CrossArguments&, cudaStream_t); \
  template int cross_blocks<HEAD, FEATURES>(CrossPass);           \
  template int cross_bytes<HEAD, FEATURES>(bool);

namespace t2r::kernels::cuda {

enum class CrossPass { kForward, kBackward };

/// What one launch does: everything, or one of the two parts that a sum over all blocks of a state
/// lies between.
enum class CrossPart { kWhole, kSource, kQueries };

template <int kHead, int kFeatures, bool kMap>
cudaError_t launch_cross(CrossPass pass,
                         CrossPart part,
                         const CrossArguments& arguments,
                         cudaStream_t stream);

/// Blocks of threads that a multiprocessor of Hopper holds at a time; a smaller one is planned for
/// as if it did.
template <int kHead, int kFeatures>
int cross_blocks(CrossPass pass);

/// Shared memory, in bytes, that a block of threads has to have for both passes.
template <int kHead, int kFeatures>
int cross_bytes(bool has_map);

}  // namespace t2r::kernels::cuda
