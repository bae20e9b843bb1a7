#include "model/kernels/cuda/causal_backward_sm90.cuh"

namespace t2r::kernels::cuda::sm90 {

#define T2R_INSTANTIATE(FEATURES)                                                          \
  template cudaError_t launch_forward<FEATURES, true>(const CausalArguments&, cudaStream_t);  \
  template cudaError_t launch_forward<FEATURES, false>(const CausalArguments&, cudaStream_t); \
  template cudaError_t launch_backward<FEATURES, true>(const CausalArguments&, cudaStream_t); \
  template cudaError_t launch_backward<FEATURES, false>(const CausalArguments&, cudaStream_t);

T2R_INSTANTIATE(32)
T2R_INSTANTIATE(64)

}  // namespace t2r::kernels::cuda::sm90
