#include "model/kernels/cuda/causal/causal_instances.h"
#include "model/kernels/cuda/sm90/backward/columns_128.cuh"
#include "model/kernels/cuda/sm90/backward/kernel.cuh"
#include "model/kernels/cuda/sm90/backward/producer_128.cuh"
#include "model/kernels/cuda/sm90/backward/rows_128.cuh"
#include "model/kernels/cuda/sm90/backward/sums_128.cuh"

namespace t2r::kernels::cuda::sm90 {

template <int kFeatures, bool kMap>
cudaError_t launch_backward_wide(const CausalArguments& arguments, cudaStream_t stream) {
  return launch_backward_of_head<128, kFeatures, kMap>(/*early=*/false, arguments, stream);
}
T2R_INSTANTIATE_SM90(launch_backward_wide)

}  // namespace t2r::kernels::cuda::sm90
