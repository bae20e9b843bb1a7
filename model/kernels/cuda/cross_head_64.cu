#include "model/kernels/cuda/cross_launch.cuh"

namespace t2r::kernels::cuda {

T2R_INSTANTIATE_CROSS(64, 32, 128)
T2R_INSTANTIATE_CROSS(64, 64, 128)
T2R_INSTANTIATE_CROSS(64, 128, 64)

}  // namespace t2r::kernels::cuda
