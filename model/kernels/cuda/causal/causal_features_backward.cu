#include "model/kernels/cuda/causal/causal_features_backward.h"

#include "model/kernels/cuda/causal/features/block.cuh"

namespace t2r::kernels::cuda {
namespace {

using features::FeaturesBackward, features::kFeatures, features::kHead, features::kThreads;
using features::Memory;

/// The gradients of causal_forward_kernel for given features, as causal_backward_kernel (formulas
/// there) but for how a block's work is cut, so that nothing spills and two blocks of eight warps
/// share a multiprocessor. Two warps share 16 rows. As rows (e, d phi(q), R) each has half of the
/// features; denominators and d o . o are sums over features, so halves of them are exchanged, and
/// d o . v is computed by both, and again when e is known, instead of being kept. As columns one
/// makes d phi(k), the other d v. Every warp owns 16 features of dS and dz. dS lies in shared
/// memory alone, as hi + lo (2^-18 a chunk). Barriers: loaded | rows | columns and products for dS
/// | dS.
__global__ void __launch_bounds__(kThreads, 2)
    causal_features_backward_kernel(const __grid_constant__ CausalArguments a) {
  extern __shared__ __align__(128) unsigned char memory[];
  FeaturesBackward(a, memory).run();
}

}  // namespace

bool has_causal_features_backward(const CausalArguments& a) {
  return a.weight == nullptr && a.document_start == nullptr && a.plan.segments == 1 &&
         a.shape.head_size == kHead && a.plan.padded_features == kFeatures &&
         a.plan.engine == Engine::kSm80;
}

cudaError_t causal_features_backward(const CausalArguments& a, cudaStream_t stream) {
  const auto kernel = &causal_features_backward_kernel;
  cudaError_t error =
      cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, Memory::kBytes);
  if (error == cudaSuccess)
    error = cudaFuncSetAttribute(
        kernel, cudaFuncAttributePreferredSharedMemoryCarveout, cudaSharedmemCarveoutMaxShared);
  if (error != cudaSuccess) return error;
  kernel<<<a.shape.batch * a.shape.query_heads, kThreads, Memory::kBytes, stream>>>(a);
  return cudaGetLastError();
}

}  // namespace t2r::kernels::cuda
