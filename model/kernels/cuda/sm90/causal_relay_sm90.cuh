#pragma once

#include "model/kernels/cuda/sm90/causal_sm90.cuh"

namespace t2r::kernels::cuda::sm90 {

/// Warpgroups that walk a sequence together, taking turns with kWalkTokens tokens each; as many as
/// there are registers for. One thread of one warpgroup more moves tiles.
template <int kFeatures>
inline constexpr int kWalkers = kFeatures == 32 ? 3 : 2;
template <int kFeatures>
inline constexpr int kWalkThreads = 128 * (kWalkers<kFeatures> + 1);
constexpr int kMoverRegisters = 24;
template <int kFeatures>
inline constexpr int kWalkerRegisters = kWalkers<kFeatures> == 3 ? 160 : 240;

/// What one walker hands to the next one's, in shared memory: a matrix [kHead][kFeatures] as the
/// accumulators of its products hold it, every thread's values where the thread in the same place
/// of the next walker finds them, and a vector [kFeatures] that every row of accumulators holds.
/// Every warp of every walker has a barrier of its own.
template <int kFeatures>
struct Relay {
  static constexpr int kMatrixBytes = 4 * kFeatures * kHead, kVectorBytes = 16 * kFeatures;
  static constexpr int kBytes = kMatrixBytes + kVectorBytes, kBarriers = 4 * kWalkers<kFeatures>;
  float4* matrix;
  float* vector;
  uint32_t own, next;  // barriers
  int lane;

  __device__ __forceinline__ Relay(unsigned char* memory, uint32_t barriers, int walker, int tid)
      : matrix(reinterpret_cast<float4*>(memory) + (tid & 127)),
        vector(reinterpret_cast<float*>(memory + kMatrixBytes) + (tid >> 5 & 3) * kFeatures +
               2 * (tid & 3)),
        own(barriers + 8 * (4 * walker + (tid >> 5 & 3))),
        next(barriers + 8 * (4 * ((walker + 1) % kWalkers<kFeatures>)+(tid >> 5 & 3))),
        lane(tid & 31) {}

  /// What came before the tokens of turn `turn`.
  __device__ __forceinline__ void take(int turn,
                                       float (&x)[kFeatures / 8][4],
                                       float (&y)[kFeatures / 8][2]) const {
    wait_barrier(own, turn / kWalkers<kFeatures> & 1);
    read(x, y);
  }
  __device__ __forceinline__ void read(float (&x)[kFeatures / 8][4],
                                       float (&y)[kFeatures / 8][2]) const {
#pragma unroll
    for (int n = 0; n < kFeatures / 8; ++n) {
      const float4 four = matrix[n * 128];
      x[n][0] = four.x, x[n][1] = four.y, x[n][2] = four.z, x[n][3] = four.w;
      const float2 two = *reinterpret_cast<const float2*>(vector + 8 * n);
      y[n][0] = two.x, y[n][1] = two.y;
    }
  }

  /// To the next walker: what came before its tokens and with them, after take().
  __device__ __forceinline__ void give(const float (&x)[kFeatures / 8][4],
                                       const float (&y)[kFeatures / 8][4]) const {
    write(x, y, next);
  }

  /// To the walker of the first turn, by itself: `from_x` [features][kHead] and `from_y`, or zeros;
  /// `low` is the first of the thread's two rows.
  __device__ __forceinline__ void start(const float* from_x,
                                        const float* from_y,
                                        int low,
                                        int features) const {
    float x[kFeatures / 8][4] = {}, y[kFeatures / 8][4] = {};
    if (from_x != nullptr) {
#pragma unroll
      for (int n = 0; n < kFeatures / 8; ++n)
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          const int feature = n * 8 + 2 * (lane & 3) + (i & 1);
          if (feature >= features) continue;
          x[n][i] = from_x[feature * kHead + low + (i < 2 ? 0 : 8)];
          y[n][i] = from_y[feature];
        }
    }
    write(x, y, own);
  }

  __device__ __forceinline__ void write(const float (&x)[kFeatures / 8][4],
                                        const float (&y)[kFeatures / 8][4],
                                        uint32_t barrier) const {
    __syncwarp();  // all lanes have taken the vector
#pragma unroll
    for (int n = 0; n < kFeatures / 8; ++n) {
      matrix[n * 128] = {x[n][0], x[n][1], x[n][2], x[n][3]};
      if (lane < 4) *reinterpret_cast<float2*>(vector + 8 * n) = {y[n][0], y[n][1]};
    }
    arrive(barrier, lane);
  }
};

/// Writes a matrix and a vector as Relay has them to `to_x` [features][kHead] and `to_y` (may be
/// null); by one warpgroup.
template <int kFeatures>
__device__ __forceinline__ void write_state(const float (&x)[kFeatures / 8][4],
                                            const float (&y)[kFeatures / 8][2],
                                            float* to_x,
                                            float* to_y,
                                            int low,
                                            int features,
                                            int lane) {
#pragma unroll
  for (int n = 0; n < kFeatures / 8; ++n)
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const int feature = n * 8 + 2 * (lane & 3) + (i & 1);
      if (feature >= features) continue;
      to_x[feature * kHead + low + (i < 2 ? 0 : 8)] = x[n][i];
      if (to_y != nullptr && low < 8 && lane < 4 && i < 2) to_y[feature] = y[n][i];
    }
}

/// Barrier of all walkers of a block.
template <int kFeatures>
__device__ __forceinline__ void sync_walkers() {
  asm volatile("bar.sync 8, %0;\n" ::"n"(128 * kWalkers<kFeatures>) : "memory");
}

}  // namespace t2r::kernels::cuda::sm90
