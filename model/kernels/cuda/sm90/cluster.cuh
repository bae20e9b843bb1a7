#pragma once

// Clusters of blocks that read and write each other's shared memory (Hopper), for kernels that are
// compiled for older GPUs too: there it does nothing, and nothing but single blocks is launched.

#include <cstdint>

namespace t2r::kernels::cuda {

/// Of all threads of a cluster; what they wrote before is seen behind it.
__device__ __forceinline__ void sync_cluster() {
#if __CUDA_ARCH__ >= 900
  asm volatile("barrier.cluster.arrive.release.aligned;\nbarrier.cluster.wait.acquire.aligned;\n" ::
                   : "memory");
#endif
}

/// The address of the same place in the shared memory of another block of the cluster.
__device__ __forceinline__ uint32_t address_at_rank(uint32_t own, int rank) {
  uint32_t remote = own;
#if __CUDA_ARCH__ >= 900
  asm volatile("mapa.shared::cluster.u32 %0, %1, %2;\n" : "=r"(remote) : "r"(own), "r"(rank));
#endif
  return remote;
}
__device__ __forceinline__ float2 load_pair_at(uint32_t remote) {
  float2 pair = {};
#if __CUDA_ARCH__ >= 900
  asm volatile("ld.shared::cluster.v2.f32 {%0, %1}, [%2];\n"
               : "=f"(pair.x), "=f"(pair.y)
               : "r"(remote)
               : "memory");
#endif
  return pair;
}
__device__ __forceinline__ void store_at(uint32_t remote, uint32_t value) {
#if __CUDA_ARCH__ >= 900
  asm volatile("st.shared::cluster.b32 [%0], %1;\n" ::"r"(remote), "r"(value) : "memory");
#endif
}

}  // namespace t2r::kernels::cuda
