#include "model/kernels/cuda/causal/causal_instances.h"
#include "model/kernels/cuda/sm90/backward/columns_64.cuh"
#include "model/kernels/cuda/sm90/backward/kernel.cuh"
#include "model/kernels/cuda/sm90/backward/producer_64.cuh"
#include "model/kernels/cuda/sm90/backward/rows_64.cuh"
#include "model/kernels/cuda/sm90/backward/sums_64.cuh"

namespace t2r::kernels::cuda::sm90 {

template <int kFeatures, bool kMap>
cudaError_t launch_backward(const CausalArguments& arguments, cudaStream_t stream) {
  return launch_backward_of_head<64, kFeatures, kMap>(/*early=*/true, arguments, stream);
}
T2R_INSTANTIATE_SM90(launch_backward)

}  // namespace t2r::kernels::cuda::sm90
