#pragma once

// What the passes of Hedgehog's map share. Symbols:
//
// x, W, b, y      y = W x + b in units of log 2, `rows` values
// phi             [softmax(y), softmax(-y)], 2 rows features; its halves are `up` and `down`
// tile            8 columns of accumulators or of B fragments; unit: 32 columns, 16 bytes a lane
// low, high       a lane's two rows of accumulators, 8 apart

#include "model/kernels/cuda/causal/causal_common.cuh"
#include "model/kernels/cuda/pointwise/hedgehog_map.h"
#include "model/kernels/cuda/rows.cuh"

namespace t2r::kernels::cuda::hedgehog {

// Products of a warp's 16 rows take columns in another order, so that what a lane needs or has lies
// side by side in memory: place 8 t + 2 c + j of 32 (tile t, lane c of four, j of a pair) is column
// 8 c + 2 t + j. As k of an A operand, as n of a result and as k of the product behind it that is
// one and the same order, and a lane loads and stores units of 16 bytes.
__device__ __forceinline__ int column_of(int place) {
  return (place & ~31) + 8 * ((place & 7) >> 1) + 2 * ((place >> 3) & 3) + (place & 1);
}

constexpr int kThreads = 256, kWarps = kThreads / 32, kTileRows = 16 * kWarps;

/// What a block works on.
struct Assignment {
  const HedgehogHeads* heads;
  int tensor, head, map, x_head;
};
__device__ __forceinline__ Assignment assignment_of(const HedgehogMap& a, int index) {
  Assignment to{};
  to.tensor = index < a.tensors[0].heads ? 0 : 1;
  to.heads = &a.tensors[to.tensor];
  to.head = index - (to.tensor == 0 ? 0 : a.tensors[0].heads);
  to.map = to.head / (to.heads->heads / a.maps);
  to.x_head = to.head / (to.heads->heads / to.heads->x_heads);
  return to;
}

/// A token's row of a view.
__device__ __forceinline__ int64_t row_offset(const View& view,
                                              int64_t token,
                                              int length,
                                              int head) {
  const int64_t batch = quotient(token, length);
  return batch * view.batch_stride + (token - batch * length) * view.token_stride +
         head * view.head_stride;
}

/// W as B fragments, 16 bytes a lane for every tile of 8 rows and every 32 columns: two k-steps.
/// Zeros behind the rows.
template <int kHead, int kRows>
__device__ __forceinline__ void load_weight(uint4* fragments, const bf16* w, int rows) {
  constexpr int kUnits = kHead / 32;
  for (int i = threadIdx.x; i < kRows / 8 * kUnits * 32; i += kThreads) {
    const int lane = i & 31, unit = i / 32 % kUnits, tile = i / 32 / kUnits;
    const int row = column_of(8 * tile + lane / 4);
    const uint4 zero = {0, 0, 0, 0};
    fragments[i] =
        row < rows ? *reinterpret_cast<const uint4*>(w + row * kHead + 32 * unit + 8 * (lane & 3))
                   : zero;
  }
}

/// The transpose of W, likewise: n are its columns, k its rows.
template <int kHead, int kRows>
__device__ __forceinline__ void load_weight_transposed(uint4* fragments, const bf16* w, int rows) {
  constexpr int kUnits = kRows / 32;
  for (int i = threadIdx.x; i < kHead / 8 * kUnits * 32; i += kThreads) {
    const int lane = i & 31, unit = i / 32 % kUnits, tile = i / 32 / kUnits;
    const int column = column_of(8 * tile + lane / 4), row0 = 32 * unit + 8 * (lane & 3);
    const auto at = [&](int row) {
      return row < rows ? uint32_t{reinterpret_cast<const uint16_t*>(w)[row * kHead + column]} : 0U;
    };
    fragments[i] = {at(row0) | at(row0 + 1) << 16,
                    at(row0 + 2) | at(row0 + 3) << 16,
                    at(row0 + 4) | at(row0 + 5) << 16,
                    at(row0 + 6) | at(row0 + 7) << 16};
  }
}

/// c = a B, a in units of 32 columns: two k-steps of rows r and r + 8.
template <int kUnits, int kTiles>
__device__ __forceinline__ void multiply(float (&c)[kTiles][4],
                                         const uint4 (&low)[kUnits],
                                         const uint4 (&high)[kUnits],
                                         const uint4* fragments,
                                         int lane) {
#pragma unroll
  for (auto& tile : c)
#pragma unroll
    for (float& x : tile) x = 0.0F;
#pragma unroll
  for (int unit = 0; unit < kUnits; ++unit) {
    const uint32_t first[4] = {low[unit].x, high[unit].x, low[unit].y, high[unit].y};
    const uint32_t second[4] = {low[unit].z, high[unit].z, low[unit].w, high[unit].w};
#pragma unroll
    for (int tile = 0; tile < kTiles; ++tile) {
      const uint4 b = fragments[(tile * kUnits + unit) * 32 + lane];
      mma(c[tile], first, b.x, b.y);
      mma(c[tile], second, b.z, b.w);
    }
  }
}

/// This lane's values of one row: y[tile][2 i], y[tile][2 i + 1] for row i of two.
template <int kRows>
struct Columns {
  int rows;   // of W; the columns behind them do not count
  int first;  // 8 (lane % 4)
  __device__ __forceinline__ int of(int tile, int j) const {
    return 32 * (tile / 4) + first + 2 * (tile % 4) + j;
  }
  template <bool kWhole>
  __device__ __forceinline__ bool counts(int tile, int j) const {
    return kWhole || of(tile, j) < rows;
  }
};

__device__ __forceinline__ float row_max(float x) {
  x = fmaxf(x, __shfl_xor_sync(kAllLanes, x, 1));
  return fmaxf(x, __shfl_xor_sync(kAllLanes, x, 2));
}

constexpr float kLog2e = 1.4426950408889634F;

/// y + bias in units of log 2, and the largest and the least of each row.
template <int kRows, bool kWhole>
struct Logits {
  static constexpr int kTiles = kRows / 8;
  float largest[2], least[2];

  __device__ __forceinline__ Logits(float (&y)[kTiles][4],
                                    const float* bias,
                                    const Columns<kRows>& columns) {
#pragma unroll
    for (int i = 0; i < 2; ++i) largest[i] = -INFINITY, least[i] = INFINITY;
#pragma unroll
    for (int tile = 0; tile < kTiles; ++tile) {
      const float2 add = *reinterpret_cast<const float2*>(bias + columns.of(tile, 0));
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        y[tile][i] = (y[tile][i] + ((i & 1) == 0 ? add.x : add.y)) * kLog2e;
        if (columns.template counts<kWhole>(tile, i & 1)) {
          largest[i / 2] = fmaxf(largest[i / 2], y[tile][i]);
          least[i / 2] = fminf(least[i / 2], y[tile][i]);
        }
      }
    }
#pragma unroll
    for (int i = 0; i < 2; ++i) largest[i] = row_max(largest[i]), least[i] = -row_max(-least[i]);
  }
  __device__ __forceinline__ float up(float y, int row) const {
    return exp2f(y - largest[row]);
  }
  __device__ __forceinline__ float down(float y, int row) const {
    return exp2f(least[row] - y);
  }
};

template <int kHead>
__device__ __forceinline__ void load_units(uint4 (&to)[kHead / 32],
                                           const bf16* row,
                                           bool exists,
                                           int lane) {
  const uint4 zero = {0, 0, 0, 0};
#pragma unroll
  for (int unit = 0; unit < kHead / 32; ++unit)
    to[unit] = exists ? *reinterpret_cast<const uint4*>(row + 32 * unit + 8 * (lane & 3)) : zero;
}

}  // namespace t2r::kernels::cuda::hedgehog
