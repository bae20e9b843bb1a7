#pragma once

// The copy engine of Hopper (TMA): tiles and plain runs of bytes between global and shared memory,
// and the barriers that tell of their arrival. One thread starts a copy.

#include <cuda.h>

#include "model/kernels/cuda/tensor_core.cuh"

namespace t2r::kernels::cuda::sm90 {

/// A phase of the barrier ends with `arrivals` of arrive() or expect_bytes().
__device__ __forceinline__ void init_barrier(uint32_t barrier, int arrivals = 1) {
  asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;\n" ::"r"(barrier), "r"(arrivals)
               : "memory");
}
/// After init_barrier(), before the first copy.
__device__ __forceinline__ void publish_barriers() {
  asm volatile("fence.mbarrier_init.release.cluster;\n" ::: "memory");
}

/// This phase of the barrier ends when `bytes` have arrived.
__device__ __forceinline__ void expect_bytes(uint32_t barrier, int bytes) {
  asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;\n" ::"r"(barrier), "r"(bytes)
               : "memory");
}

/// This warp's arrival, once all its lanes are here. What was read from shared memory must have
/// been used before, by a store, a shuffle or a product: loads still on their way do not hold the
/// arrival up (seen: they read what the copy engine had brought since).
__device__ __forceinline__ void arrive(uint32_t barrier, int lane) {
  __syncwarp();
  if (lane == 0)
    asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];\n" ::"r"(barrier) : "memory");
}

/// Until the phase of this parity has ended; of the phases before the first, the last counts as
/// ended (parity 1).
__device__ __forceinline__ void wait_barrier(uint32_t barrier, int parity) {
  asm volatile(
      "{\n.reg .pred done;\n"
      "again:\nmbarrier.try_wait.parity.shared::cta.b64 done, [%0], %1;\n@done bra ready;\nbra "
      "again;\nready:\n}\n" ::"r"(barrier),
      "r"(parity)
      : "memory");
}

/// Brings a kernel's argument `map` near, before its first use; may come before
/// wait_for_earlier_kernels().
__device__ __forceinline__ void prefetch_map(const CUtensorMap& map) {
  asm volatile("prefetch.tensormap [%0];\n" ::"l"(&map) : "memory");
}

/// Loads the box of `map` at (column, token, head, batch); tokens outside the tensor become zeros.
__device__ __forceinline__ void load_tile(uint32_t to,
                                          const CUtensorMap& map,
                                          uint32_t barrier,
                                          int column,
                                          int token,
                                          int head,
                                          int batch) {
  asm volatile(
      "cp.async.bulk.tensor.4d.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1, {%3, "
      "%4, %5, %6}], [%2];\n" ::"r"(to),
      "l"(&map),
      "r"(barrier),
      "r"(column),
      "r"(token),
      "r"(head),
      "r"(batch)
      : "memory");
}

/// Brings the box of `map` near: to the L2 cache.
__device__ __forceinline__ void prefetch_tile(
    const CUtensorMap& map, int column, int token, int head, int batch) {
  asm volatile("cp.async.bulk.prefetch.tensor.4d.L2.global [%0, {%1, %2, %3, %4}];\n" ::"l"(&map),
               "r"(column),
               "r"(token),
               "r"(head),
               "r"(batch)
               : "memory");
}

/// Stores the box of `map`; tokens outside the tensor are left out. Ordinary stores to `from` need
/// make_visible_to_wgmma() before (it is the same proxy).
__device__ __forceinline__ void store_tile(
    const CUtensorMap& map, uint32_t from, int column, int token, int head, int batch) {
  asm volatile(
      "cp.async.bulk.tensor.4d.global.shared::cta.bulk_group [%0, {%2, %3, %4, %5}], [%1];\n" ::"l"(
          &map),
      "r"(from),
      "r"(column),
      "r"(token),
      "r"(head),
      "r"(batch)
      : "memory");
}

__device__ __forceinline__ void load_bytes(uint32_t to,
                                           const void* from,
                                           int bytes,
                                           uint32_t barrier) {
  asm volatile(
      "cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];\n" ::
          "r"(to),
      "l"(from),
      "r"(bytes),
      "r"(barrier)
      : "memory");
}
__device__ __forceinline__ void prefetch_bytes(const void* from, int bytes) {
  asm volatile("cp.async.bulk.prefetch.L2.global [%0], %1;\n" ::"l"(from), "r"(bytes) : "memory");
}
__device__ __forceinline__ void store_bytes(void* to, uint32_t from, int bytes) {
  asm volatile("cp.async.bulk.global.shared::cta.bulk_group [%0], [%1], %2;\n" ::"l"(to),
               "r"(from),
               "r"(bytes)
               : "memory");
}

__device__ __forceinline__ void commit_stores() {
  asm volatile("cp.async.bulk.commit_group;\n" ::: "memory");
}
/// Until this thread's stores have read their shared memory.
__device__ __forceinline__ void wait_stores_read() {
  asm volatile("cp.async.bulk.wait_group.read 0;\n" ::: "memory");
}

/// Sends this warp's 16 rows of `tile`, written by ordinary stores, to global memory, where they
/// begin at `column`.
template <int kColumns>
__device__ __forceinline__ void send_rows(const CUtensorMap& map,
                                          const Tile<kColumns>& tile,
                                          int row,
                                          int column,
                                          int first,
                                          int head,
                                          int batch,
                                          int lane) {
  asm volatile("fence.proxy.async.shared::cta;\n" ::: "memory");
  __syncwarp();
  if (lane == 0) {
    store_tile(map, tile.base + row * Tile<kColumns>::kRowBytes, column, first + row, head, batch);
    commit_stores();
  }
}

}  // namespace t2r::kernels::cuda::sm90
