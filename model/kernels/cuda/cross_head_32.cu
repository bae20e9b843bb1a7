#include "model/kernels/cuda/cross_launch.cuh"

namespace t2r::kernels::cuda {

T2R_INSTANTIATE_CROSS(32, 32, 128)
T2R_INSTANTIATE_CROSS(32, 64, 128)
T2R_INSTANTIATE_CROSS(32, 128, 128)

}  // namespace t2r::kernels::cuda
