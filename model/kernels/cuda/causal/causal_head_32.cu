#include "model/kernels/cuda/causal/causal_backward.cuh"
#include "model/kernels/cuda/causal/causal_forward.cuh"
#include "model/kernels/cuda/causal/causal_instances.h"

namespace t2r::kernels::cuda {

T2R_INSTANTIATE_CAUSAL(32, 32, 128)
T2R_INSTANTIATE_CAUSAL(32, 64, 128)
T2R_INSTANTIATE_CAUSAL(32, 128, 128)
T2R_INSTANTIATE_SHORT_CAUSAL(32, 64, 64, true)
T2R_INSTANTIATE_SHORT_CAUSAL(32, 128, 64, true)
T2R_INSTANTIATE_SHORT_CAUSAL(32, 128, 64, false)

}  // namespace t2r::kernels::cuda
