#pragma once

#include "model/kernels/cuda/causal/causal_attention.h"

/// The tensor-core kernels that exist, as (head size, padded features, chunk): causal_dispatch.cu
/// chooses, causal_head_*.cu instantiate. 128 x 128 does not: its accumulators alone would fill the
/// registers.
#define T2R_FOR_EACH_CAUSAL(F) \
  F(32, 32, 128)               \
  F(32, 64, 128)               \
  F(32, 128, 128)              \
  F(64, 32, 128)               \
  F(64, 64, 128)               \
  F(64, 128, 64)               \
  F(128, 32, 64)               \
  F(128, 64, 64)

/// With shorter chunks and with a map or without, where a device has less shared memory than those
/// need.
#define T2R_FOR_EACH_SHORT_CAUSAL(F) \
  F(32, 64, 64, true)                \
  F(32, 128, 64, true)               \
  F(32, 128, 64, false)              \
  F(64, 32, 64, true)                \
  F(64, 64, 64, true)                \
  F(64, 64, 64, false)

#define T2R_INSTANTIATE_CAUSAL(HEAD, FEATURES, CHUNK)                                        \
  template cudaError_t launch_forward<HEAD, FEATURES, CHUNK, true>(const CausalArguments&,   \
                                                                   cudaStream_t);            \
  template cudaError_t launch_forward<HEAD, FEATURES, CHUNK, false>(const CausalArguments&,  \
                                                                    cudaStream_t);           \
  template cudaError_t launch_backward<HEAD, FEATURES, CHUNK, true>(const CausalArguments&,  \
                                                                    cudaStream_t);           \
  template cudaError_t launch_backward<HEAD, FEATURES, CHUNK, false>(const CausalArguments&, \
                                                                     cudaStream_t);

#define T2R_INSTANTIATE_SHORT_CAUSAL(HEAD, FEATURES, CHUNK, MAP)                           \
  template cudaError_t launch_forward<HEAD, FEATURES, CHUNK, MAP>(const CausalArguments&,  \
                                                                  cudaStream_t);           \
  template cudaError_t launch_backward<HEAD, FEATURES, CHUNK, MAP>(const CausalArguments&, \
                                                                   cudaStream_t);

/// On Hopper, by causal_sm90_*.cu.
#define T2R_INSTANTIATE_SM90(FUNCTION)                                            \
  template cudaError_t FUNCTION<32, true>(const CausalArguments&, cudaStream_t);  \
  template cudaError_t FUNCTION<32, false>(const CausalArguments&, cudaStream_t); \
  template cudaError_t FUNCTION<64, true>(const CausalArguments&, cudaStream_t);  \
  template cudaError_t FUNCTION<64, false>(const CausalArguments&, cudaStream_t);

namespace t2r::kernels::cuda {

template <int kHead, int kFeatures, int kChunk, bool kMap>
cudaError_t launch_forward(const CausalArguments& arguments, cudaStream_t stream);
template <int kHead, int kFeatures, int kChunk, bool kMap>
cudaError_t launch_backward(const CausalArguments& arguments, cudaStream_t stream);

namespace sm90 {
// Head size 64.
template <int kFeatures, bool kMap>
cudaError_t launch_forward(const CausalArguments& arguments, cudaStream_t stream);
template <int kFeatures, bool kMap>
cudaError_t launch_backward(const CausalArguments& arguments, cudaStream_t stream);

// Head size 128.
template <int kFeatures, bool kMap>
cudaError_t launch_forward_wide(const CausalArguments& arguments, cudaStream_t stream);
template <int kFeatures, bool kMap>
cudaError_t launch_backward_wide(const CausalArguments& arguments, cudaStream_t stream);
}  // namespace sm90

}  // namespace t2r::kernels::cuda
