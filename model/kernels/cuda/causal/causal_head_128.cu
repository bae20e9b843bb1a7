#include "model/kernels/cuda/causal/causal_backward.cuh"
#include "model/kernels/cuda/causal/causal_forward.cuh"
#include "model/kernels/cuda/causal/causal_instances.h"

namespace t2r::kernels::cuda {

T2R_INSTANTIATE_CAUSAL(128, 32, 64)
T2R_INSTANTIATE_CAUSAL(128, 64, 64)

}  // namespace t2r::kernels::cuda
