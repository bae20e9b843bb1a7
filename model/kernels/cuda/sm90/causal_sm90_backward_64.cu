#include "model/kernels/cuda/causal/causal_instances.h"
#include "model/kernels/cuda/sm90/causal_backward_sm90.cuh"

namespace t2r::kernels::cuda::sm90 {

T2R_INSTANTIATE_SM90(launch_backward)

}  // namespace t2r::kernels::cuda::sm90
