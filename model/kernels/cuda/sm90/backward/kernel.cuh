#pragma once

// The backward kernels for Hopper. Read this file, then memory.cuh (pipelines), block.cuh, and a
// head size's roles: rows, columns, sums, producer.
//
// q, k, v, d o        inputs of a chunk of 64 tokens: tiles in shared memory
// W, b                the map: y = W x + b, phi = relu(y) times a scale; or features are given
// phi(q), phi(k)      features (phi_q, phi_k)
// S, z, m             before the chunk: sum of phi(k) v^T, sum of phi(k), mean of v weighted so
// D                   a row's denominator: phi(q) . (z + the chunk's phi(k) up to the row)
// R                   phi(q) / D (scaled_phi_q)
// p, dp               weights phi(q) . phi(k) (or R . phi(k)) and d o . v of the chunk
// e                   -(d o . o), 0 where D is the floor
// dphi, d y           gradients of features and of y (dphi, grad_y)
// dS, dz              behind the chunk: sum of R d o^T, sum of R e (ds, dz; high and low halves)
// dW, d b             gradients of the map (dw, db)
// low, high           a lane's two rows of accumulators

#include "model/kernels/cuda/sm90/backward/block.cuh"

namespace t2r::kernels::cuda::sm90 {

/// Gradients on Hopper (formulas: causal/causal_backward.cuh). A block of threads walks one segment
/// of one query head from its last chunk of 64 tokens to its first, with a warpgroup for each part
/// of the work, all of them at different places of the walk. They wait for each other at the
/// barriers of BackwardPipelines only.
template <int kHeadSize, int kFeatures, bool kMap, BackwardPart kPart>
__global__ void __launch_bounds__(kBackwardThreads, 1)
    causal_backward_kernel(const __grid_constant__ CausalArguments a,
                           const __grid_constant__ TensorMaps maps) {
#ifdef __CUDA_ARCH_FEAT_SM90_ALL
  extern __shared__ unsigned char unaligned_memory[];
  const BackwardBlock<kHeadSize, kFeatures, kMap, kPart> block(
      a, maps, unaligned_memory + (-shared_address(unaligned_memory) & 1023));
  const TileProducer<kHeadSize, kFeatures, kMap, kPart> producer(block);
  if (threadIdx.x == 0) block.init_barriers();
  producer.begin();
  __syncthreads();
  if (block.warpgroup() == 0) {
    RowsConsumer<kHeadSize, kFeatures, kMap, kPart>(block).run();
  } else if (block.warpgroup() == 1) {
    ColumnsConsumer<kHeadSize, kFeatures, kMap, kPart>(block).run();
  } else if (block.warpgroup() == 2) {
    SumsConsumer<kHeadSize, kFeatures, kMap, kPart>(block).run();
  } else {
    producer.run();
  }
#else
  __trap();
#endif
}

/// `early`: the kernel may start before the one before it has ended.
template <int kHeadSize, int kFeatures, bool kMap>
cudaError_t launch_backward_of_head(bool early, const CausalArguments& a, cudaStream_t stream) {
  return launch_backward_kernels(
      early,
      &causal_backward_kernel<kHeadSize, kFeatures, kMap, BackwardPart::kAll>,
      &causal_backward_kernel<kHeadSize, kFeatures, kMap, BackwardPart::kRows>,
      &causal_backward_kernel<kHeadSize, kFeatures, kMap, BackwardPart::kColumns>,
      kBackwardThreads,
      BackwardMemory<kHeadSize, kFeatures, kMap>::kBytes,
      a,
      stream);
}

}  // namespace t2r::kernels::cuda::sm90
