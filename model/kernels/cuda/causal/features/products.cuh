#pragma once

// The backward kernel for given features, 64 columns of v and 128 features. Symbols as in
// causal/causal_backward.cuh, and:
//
// q_tile, k_tile   phi(q) (then d phi(q) on its way out, then R) and phi(k) of a chunk
// half             of the features, which one of two warps with the same rows has
// unit             16 bytes: 8 columns of a tile
// low, high        a lane's two rows of accumulators

#include "model/kernels/cuda/causal/causal_common.cuh"

namespace t2r::kernels::cuda::features {

constexpr int kHead = 64, kFeatures = 128, kChunk = 64, kWarps = 8, kThreads = 32 * kWarps;
constexpr int kHalfFeatures = kFeatures / 2, kHalfUnits = kHalfFeatures / 8;

/// Shared memory in bytes from its start: two blocks just fit a multiprocessor.
struct Memory {
  static constexpr int kQ = 0;  // phi(q); then d phi(q) on its way out; then R
  static constexpr int kK = kQ + kChunk * kFeatures * 2;
  static constexpr int kV = kK + kChunk * kFeatures * 2;
  static constexpr int kGradO = kV + kChunk * kHead * 2;
  static constexpr int kState = kGradO + kChunk * kHead * 2;  // S, hi and lo
  static constexpr int kGradState = kState + 4 * kFeatures * kHead;
  static constexpr int kDz = kGradState + 4 * kFeatures * kHead;
  static constexpr int kE = kDz + 4 * kFeatures;
  static constexpr int kBytes = kE + 4 * kChunk;
};
static_assert(2 * (Memory::kBytes + 1024) <= 228 * 1024);

/// Barriers of the two warps that share rows, by name (+ block of rows): halves of sums have been
/// exchanged and read; the rows of k, and of v, have been read by the warp that does not write
/// them.
enum PairBarrier { kSums = 1, kKeysRead = 5, kValuesRead = 9 };
__device__ __forceinline__ void sync_pair(int id) {
  asm volatile("bar.sync %0, 64;\n" ::"r"(id) : "memory");
}
__device__ __forceinline__ void arrive_pair(int id) {
  asm volatile("bar.arrive %0, 64;\n" ::"r"(id) : "memory");
}

/// c += a B^T for both n-tiles of 16 rows of B, whose k columns begin at `unit`.
template <int kSteps, int kColumns>
__device__ __forceinline__ void multiply(float (&c)[2][4],
                                         const uint32_t (&a)[kSteps][4],
                                         const Tile<kColumns>& b_tile,
                                         int row,
                                         int unit,
                                         int lane) {
#pragma unroll
  for (int step = 0; step < kSteps; ++step) {
    uint32_t b[4];
    b_tile.load_b(b, row, unit + 2 * step, lane);
    mma(c[0], a[step], b[0], b[1]);
    mma(c[1], a[step], b[2], b[3]);
  }
}

/// c += a B for 16 rows of B and its columns from `unit` on.
template <int kTiles, int kColumns>
__device__ __forceinline__ void add_rows(float (&c)[kTiles][4],
                                         const uint32_t (&a)[4],
                                         const Tile<kColumns>& b_tile,
                                         int row,
                                         int unit,
                                         int lane) {
#pragma unroll
  for (int n = 0; n < kTiles / 2; ++n) {
    uint32_t b[4];
    b_tile.load_b_transposed(b, row, unit + 2 * n, lane);
    mma(c[2 * n], a, b[0], b[1]);
    mma(c[2 * n + 1], a, b[2], b[3]);
  }
}

/// Clears what stands before its row: c has columns `column` and on of rows `low` and low + 8.
__device__ __forceinline__ void clear_before(float (&c)[2][4], int column, int low, int lane) {
#pragma unroll
  for (int n = 0; n < 2; ++n)
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      if ((i < 2 ? low : low + 8) > column + 8 * n + 2 * (lane & 3) + (i & 1)) c[n][i] = 0.0F;
    }
}

}  // namespace t2r::kernels::cuda::features
