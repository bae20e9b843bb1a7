#include "model/kernels/cuda/causal_forward_sm90.cuh"
#include "model/kernels/cuda/causal_instances.h"

namespace t2r::kernels::cuda::sm90 {

T2R_INSTANTIATE_SM90(launch_forward)

}  // namespace t2r::kernels::cuda::sm90
