#include "model/kernels/cuda/cross/cross_launch.cuh"

namespace t2r::kernels::cuda {

T2R_INSTANTIATE_CROSS(32, 32)
T2R_INSTANTIATE_CROSS(32, 64)
T2R_INSTANTIATE_CROSS(32, 128)

}  // namespace t2r::kernels::cuda
