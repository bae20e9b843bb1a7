#include "model/kernels/cuda/cross/cross_launch.cuh"

namespace t2r::kernels::cuda {

T2R_INSTANTIATE_CROSS(128, 32)
T2R_INSTANTIATE_CROSS(128, 64)

}  // namespace t2r::kernels::cuda
