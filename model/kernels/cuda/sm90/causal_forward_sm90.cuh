#pragma once

// The forward kernel for head size 64 on Hopper. Symbols as in causal/causal_forward.cuh, and:
//
// walker         a warpgroup of consumers, and its place in their turns
// m              mean of the values before the chunk, weighted by the sum of their features
// centred        S - z m^T in bf16; with z and m a record of the state (sm90/causal_sm90.cuh)
//
// Barriers (mbarriers; parity of a stage's round):
//   kLoaded      producer to a walker: the tiles of a stage have come
//   kDone        a walker's four warps to the producer: o and the record may leave, tiles may come
//   kPassed      walker to walker: the state before a turn is in the relay (causal_relay_sm90.cuh)
//   kMapReady    producer (W) and the first warp (b) to all walkers, once
// and named barriers 1 + walker: within a walker, phi(k) or the centred state are in shared memory.

#include "model/kernels/cuda/sm90/forward/consumer.cuh"
#include "model/kernels/cuda/sm90/forward/producer.cuh"

namespace t2r::kernels::cuda::sm90 {

/// causal_forward_kernel for head size 64 on Hopper: chunks of 64 tokens, one warpgroup (a walker)
/// for each, taking turns. What must follow one after the other is short: a walker adds its chunk's
/// sums to those before it, hands them on, and computes the chunk's outputs while others do the
/// next ones'. The state before every chunk is saved.
template <int kFeatures, bool kMap, bool kSumsOnly>
__global__ void __launch_bounds__(kWalkThreads<kFeatures>, 1)
    causal_forward_kernel(const __grid_constant__ CausalArguments a,
                          const __grid_constant__ TensorMaps maps) {
#ifdef __CUDA_ARCH_FEAT_SM90_ALL
  extern __shared__ unsigned char unaligned_memory[];
  const ForwardBlock<kFeatures, kMap, kSumsOnly> block(
      a, maps, unaligned_memory + (-shared_address(unaligned_memory) & 1023));
  const bool first_of_producer = block.tid == 32 * 4 * kWalkers<kFeatures>;
  if (first_of_producer) block.init_barriers();
  __syncthreads();
  if (block.walker == kWalkers<kFeatures>) {
    give_registers<kMoverRegisters>();
    if (first_of_producer) ForwardProducer<kFeatures, kMap, kSumsOnly>(block).run();
  } else {
    take_registers<kWalkerRegisters<kFeatures>>();
    ForwardConsumer<kFeatures, kMap, kSumsOnly>(block).run();
  }
#else
  __trap();
#endif
}

template <int kFeatures, bool kMap>
cudaError_t launch_forward(const CausalArguments& a, cudaStream_t stream) {
  return launch_forward_kernels(&causal_forward_kernel<kFeatures, kMap, true>,
                                &causal_forward_kernel<kFeatures, kMap, false>,
                                kWalkThreads<kFeatures>,
                                ForwardMemory<kFeatures, kMap>::kBytes,
                                a,
                                stream);
}

}  // namespace t2r::kernels::cuda::sm90
