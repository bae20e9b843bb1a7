#include "model/kernels/cuda/causal/causal_backward.cuh"
#include "model/kernels/cuda/causal/causal_forward.cuh"
#include "model/kernels/cuda/causal/causal_instances.h"

namespace t2r::kernels::cuda {

T2R_INSTANTIATE_CAUSAL(64, 32, 128)
T2R_INSTANTIATE_CAUSAL(64, 64, 128)
T2R_INSTANTIATE_CAUSAL(64, 128, 64)
T2R_INSTANTIATE_SHORT_CAUSAL(64, 32, 64, true)
T2R_INSTANTIATE_SHORT_CAUSAL(64, 64, 64, true)
T2R_INSTANTIATE_SHORT_CAUSAL(64, 64, 64, false)

}  // namespace t2r::kernels::cuda
