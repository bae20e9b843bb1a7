#include "model/kernels/cuda/causal_backward_sm90_wide.cuh"
#include "model/kernels/cuda/causal_instances.h"

namespace t2r::kernels::cuda::sm90 {

T2R_INSTANTIATE_SM90(launch_backward_wide)

}  // namespace t2r::kernels::cuda::sm90
