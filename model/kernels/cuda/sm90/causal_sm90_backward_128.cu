#include "model/kernels/cuda/causal/causal_instances.h"
#include "model/kernels/cuda/sm90/causal_backward_sm90_wide.cuh"

namespace t2r::kernels::cuda::sm90 {

T2R_INSTANTIATE_SM90(launch_backward_wide)

}  // namespace t2r::kernels::cuda::sm90
