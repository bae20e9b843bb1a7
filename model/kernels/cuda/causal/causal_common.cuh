#pragma once

// What the portable attention kernels (mma.sync m16n8k16) share. Words:
//
// item, head       a sequence and query head: what a block of threads walks (a segment of)
// chunk, segment   tokens that are worked on at a time; neighbouring chunks that one block walks
// tile             rows of a matrix in shared memory, swizzled; unit: 16 bytes of a row
// fragment         what a lane holds of an operand: A 16 rows x 16 k in uint32_t[4], B 16 k x 8
//                  columns in two; accumulators (C) 16 rows x 8 columns in float[4]
// low, high        a lane's two rows of A and C: row0 + lane / 4, and 8 more
// hi, lo           a float32 as a sum of two bf16, for products that must not round it
// map              phi(x) = relu(scale W x + b), scale 1 for keys

#include "model/kernels/cuda/causal/causal_attention.h"
#include "model/kernels/cuda/launch_early.cuh"
#include "model/kernels/cuda/tensor_core.cuh"

namespace t2r::kernels::cuda {

/// Which gradients one launch of the backward kernel makes. One sequence walked by one block of
/// threads makes them all in one sweep; a sequence cut into segments takes two launches, since a
/// segment's dS is the sum over all later segments.
enum class BackwardPart {
  kAll,
  kRows,     ///< d q, its share of d W; this segment's sums of dS and dz; the denominator and e of
             ///< every row
  kColumns,  ///< d k, d v, the rest of d W
};

/// Replaces every segment's sums by the state before it (from the initial state on), or, backwards,
/// by the gradient of the state behind it (from the gradient of the final state on).
cudaError_t scan_segments(const CausalArguments& arguments, bool backwards, cudaStream_t stream);

/// How the warps of a block share a [kFeatures, kColumns] float32 accumulator whose increments are
/// X^T Y, X and Y being tiles of a chunk: every warp owns some 16 x 8 tiles of it, in registers.
template <int kFeatures, int kColumns, int kWarps>
struct SharedProduct {
  static constexpr int kAllM = kFeatures / 16;
  static constexpr int kAllN = kColumns / 8;
  static constexpr int kWarpsN = kWarps < kAllN ? kWarps : kAllN;
  static constexpr int kWarpsM = kWarps / kWarpsN;
  static constexpr int kM = (kAllM + kWarpsM - 1) / kWarpsM;
  static constexpr int kN = kAllN / kWarpsN;
  static_assert(kAllN % kWarpsN == 0 && kWarps % kWarpsN == 0);

  float value[kM][kN][4];
  int first_m, first_n;

  __device__ __forceinline__ explicit SharedProduct(int warp)
      : first_m((warp / kWarpsN) * kM), first_n((warp % kWarpsN) * kN) {
    clear();
  }

  __device__ __forceinline__ bool owns_m(int m) const {
    return kAllM % kWarpsM == 0 || first_m + m < kAllM;
  }

  __device__ __forceinline__ void clear() {
#pragma unroll
    for (int m = 0; m < kM; ++m)
#pragma unroll
      for (int n = 0; n < kN; ++n)
#pragma unroll
        for (int i = 0; i < 4; ++i) value[m][n][i] = 0.0F;
  }

  /// value += X[begin:end]^T Y[begin:end] over the rows of a chunk of kRows; rows outside count as
  /// zero.
  template <int kRows>
  __device__ __forceinline__ void add(
      const Tile<kFeatures>& x, const Tile<kColumns>& y, int begin, int end, int lane) {
    const bool whole = begin <= 0 && end >= kRows;
#pragma unroll
    for (int step = 0; step < kRows / 16; step += 2) {
      if (!whole && (step * 16 + 32 <= begin || step * 16 >= end)) continue;
      uint32_t b[kN][4];  // [n]: the fragments of both k-steps
#pragma unroll
      for (int n = 0; n < kN; ++n) y.load_b_column_transposed(b[n], step * 16, first_n + n, lane);
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const int row = (step + half) * 16;
#pragma unroll
        for (int m = 0; m < kM; ++m) {
          if (!owns_m(m)) continue;
          uint32_t a[4];
          x.load_a_transposed(a, row, (first_m + m) * 2, lane);
          if (!whole) mask_k(a, row, begin, end, lane);
#pragma unroll
          for (int n = 0; n < kN; ++n) mma(value[m][n], a, b[n][2 * half], b[n][2 * half + 1]);
        }
      }
    }
  }

  /// Clears the k rows outside [begin, end) of an A fragment whose k starts at `row`.
  __device__ __forceinline__ static void mask_k(
      uint32_t (&a)[4], int row, int begin, int end, int lane) {
    const int k = row + 2 * (lane & 3);
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int first = k + 8 * half;
      const uint32_t keep = (first >= begin && first < end ? 0x0000ffffu : 0u) |
                            (first + 1 >= begin && first + 1 < end ? 0xffff0000u : 0u);
      a[2 * half] &= keep;
      a[2 * half + 1] &= keep;
    }
  }

  /// Calls body(row, column, pointer to two neighbouring values).
  template <class Body>
  __device__ __forceinline__ void for_each_pair(int lane, const Body& body) {
#pragma unroll
    for (int m = 0; m < kM; ++m) {
      if (!owns_m(m)) continue;
#pragma unroll
      for (int n = 0; n < kN; ++n)
#pragma unroll
        for (int half = 0; half < 2; ++half)
          body((first_m + m) * 16 + lane / 4 + 8 * half,
               (first_n + n) * 8 + 2 * (lane & 3),
               &value[m][n][2 * half]);
    }
  }

  /// Writes the matrix as hi + lo bf16 tiles.
  __device__ __forceinline__ void store_split(const Tile<kColumns>& hi,
                                              const Tile<kColumns>& lo,
                                              int lane) {
    for_each_pair(lane, [&](int row, int column, const float* pair) {
      uint32_t high, low;
      split(pair[0], pair[1], high, low);
      hi.store_pair(row, column / 8, lane & 3, high);
      lo.store_pair(row, column / 8, lane & 3, low);
    });
  }
};

/// Sums over rows of a tile times given row weights, [kFeatures] values held by one warp; in column
/// 0 and 1 of C tiles.
template <int kFeatures>
struct WeightedColumnSums {
  float value[kFeatures / 16][4];

  __device__ __forceinline__ WeightedColumnSums() { clear(); }

  __device__ __forceinline__ void clear() {
#pragma unroll
    for (auto& tile : value)
#pragma unroll
      for (float& x : tile) x = 0.0F;
  }

  /// `weights(row, b)` gives the packed weights of rows row, row + 1: columns 0 and 1 of the
  /// product are its lanes' business.
  template <int kRows, class Weights>
  __device__ __forceinline__ void add(
      const Tile<kFeatures>& x, int begin, int end, int lane, const Weights& weights) {
    const bool whole = begin <= 0 && end >= kRows;
#pragma unroll
    for (int step = 0; step < kRows / 16; ++step) {
      if (!whole && (step * 16 + 16 <= begin || step * 16 >= end)) continue;
      const uint32_t b0 = weights(step * 16 + 2 * (lane & 3)),
                     b1 = weights(step * 16 + 8 + 2 * (lane & 3));
#pragma unroll
      for (int m = 0; m < kFeatures / 16; ++m) {
        uint32_t a[4];
        x.load_a_transposed(a, step * 16, 2 * m, lane);
        if (!whole) SharedProduct<16, 8, 1>::mask_k(a, step * 16, begin, end, lane);
        mma(value[m], a, b0, b1);
      }
    }
  }

  /// Calls body(feature, sum) for the features that this lane holds.
  template <class Body>
  __device__ __forceinline__ void for_each(int lane, const Body& body) const {
    if ((lane & 3) != 0) return;
#pragma unroll
    for (int m = 0; m < kFeatures / 16; ++m) {
      body(m * 16 + lane / 4, value[m][0] + value[m][1]);
      body(m * 16 + lane / 4 + 8, value[m][2] + value[m][3]);
    }
  }
};

/// B fragment half of the all-ones column 0: what sums rows by a product.
__device__ __forceinline__ uint32_t ones_column(int lane) {
  return lane < 4 ? 0x3f803f80u : 0u;
}

/// y = x W^T for 16 rows of x.
template <int kColumns, int kFeatures>
__device__ __forceinline__ void project(float (&y)[kFeatures / 8][4],
                                        const Tile<kColumns>& x,
                                        const Tile<kColumns>& w,
                                        int row,
                                        int lane) {
#pragma unroll
  for (auto& tile : y)
#pragma unroll
    for (float& value : tile) value = 0.0F;
#pragma unroll
  for (int step = 0; step < kColumns / 16; ++step) {
    uint32_t a[4];
    x.load_a(a, row, 2 * step, lane);
#pragma unroll
    for (int n = 0; n < kFeatures / 16; ++n) {
      uint32_t b[4];
      w.load_b(b, 16 * n, 2 * step, lane);
      mma(y[2 * n], a, b[0], b[1]);
      mma(y[2 * n + 1], a, b[2], b[3]);
    }
  }
}

/// relu(scale y + bias), rounded and packed as A fragments; rows that are not valid become zero.
template <int kFeatures>
__device__ __forceinline__ void activate(uint32_t (&a)[kFeatures / 16][4],
                                         const float (&y)[kFeatures / 8][4],
                                         const float* bias,
                                         float scale,
                                         bool valid_low,
                                         bool valid_high,
                                         int lane) {
#pragma unroll
  for (int n = 0; n < kFeatures / 8; ++n) {
    const float2 add = *reinterpret_cast<const float2*>(bias + 8 * n + 2 * (lane & 3));
    const float low0 = fmaxf(fmaf(scale, y[n][0], add.x), 0.0F),
                low1 = fmaxf(fmaf(scale, y[n][1], add.y), 0.0F);
    const float high0 = fmaxf(fmaf(scale, y[n][2], add.x), 0.0F),
                high1 = fmaxf(fmaf(scale, y[n][3], add.y), 0.0F);
    a[n / 2][2 * (n & 1)] = valid_low ? pack(low0, low1) : 0u;
    a[n / 2][2 * (n & 1) + 1] = valid_high ? pack(high0, high1) : 0u;
  }
}

/// Writes A fragments of 16 rows to a tile.
template <int kFeatures>
__device__ __forceinline__ void store_rows(const Tile<kFeatures>& tile,
                                           int row,
                                           const uint32_t (&a)[kFeatures / 16][4],
                                           int lane) {
#pragma unroll
  for (int step = 0; step < kFeatures / 16; ++step) tile.store_a(a[step], row, 2 * step, lane);
}

/// Starts copying one head's W [features, kHead] of the map, with zeros behind its rows; `at(row,
/// unit)` is where 16 bytes go.
template <int kHead, int kFeatures, int kThreads, class At>
__device__ __forceinline__ void copy_weight_async(const At& at,
                                                  const void* weights,
                                                  int head,
                                                  int features) {
  const bf16* const w = static_cast<const bf16*>(weights) + int64_t{head} * features * kHead;
  for (int i = threadIdx.x; i < kFeatures * kHead / 8; i += kThreads) {
    const int row = i / (kHead / 8), unit = i % (kHead / 8);
    copy_async_16(at(row, unit), w + (row < features ? row * kHead + unit * 8 : 0), row < features);
  }
}

/// Writes one head's b of the map as float32, with zeros behind it.
template <int kFeatures, int kThreads>
__device__ __forceinline__ void load_bias(float* to, const void* biases, int head, int features) {
  const bf16* const b = static_cast<const bf16*>(biases) + int64_t{head} * features;
  for (int i = threadIdx.x; i < kFeatures; i += kThreads)
    to[i] = i < features ? __bfloat162float(b[i]) : 0.0F;
}

/// Starts copying this warp's 16 rows of a [token, column] matrix to `tile`; tokens from
/// `valid_rows` on become zeros.
template <int kColumns>
__device__ __forceinline__ void copy_rows_async(const Tile<kColumns>& tile,
                                                const bf16* from,
                                                int64_t token_stride,
                                                int row,
                                                int valid_rows,
                                                int valid_units,
                                                int lane) {
  constexpr int kUnits = kColumns / 8;
#pragma unroll
  for (int i = 0; i < kUnits / 2; ++i) {
    const int index = lane + 32 * i, r = row + index / kUnits, unit = index % kUnits;
    const bool valid = r < valid_rows && unit < valid_units;
    copy_async_16(tile.at(r, unit), from + (valid ? r * token_stride + unit * 8 : 0), valid);
  }
}

/// Writes 16 rows of C tiles to global memory through this warp's own rows of `scratch`.
template <int kColumns>
__device__ __forceinline__ void write_rows(bf16* to,
                                           int64_t token_stride,
                                           const Tile<kColumns>& scratch,
                                           int scratch_row,
                                           int row,
                                           int valid_rows,
                                           int valid_units,
                                           int lane) {
  constexpr int kUnits = kColumns / 8;
  __syncwarp();
#pragma unroll
  for (int i = 0; i < kUnits / 2; ++i) {
    const int index = lane + 32 * i, r = index / kUnits, unit = index % kUnits;
    const uint4 value = load_shared_16(scratch.at(scratch_row + r, unit));
    if (row + r < valid_rows && unit < valid_units) {
      *reinterpret_cast<uint4*>(to + (row + r) * token_stride + unit * 8) = value;
    }
  }
  __syncwarp();
}

/// Writes 16 rows of C tiles, times a factor for each row, to a tile's columns from 8 `first_unit`
/// on.
template <int kColumns, int kTileColumns>
__device__ __forceinline__ void stage_rows(const Tile<kTileColumns>& scratch,
                                           int scratch_row,
                                           const float (&c)[kColumns / 8][4],
                                           float scale_low,
                                           float scale_high,
                                           int lane,
                                           int first_unit = 0) {
#pragma unroll
  for (int step = 0; step < kColumns / 16; ++step) {
    const float(&left)[4] = c[2 * step], (&right)[4] = c[2 * step + 1];
    const uint32_t packed[4] = {pack(left[0] * scale_low, left[1] * scale_low),
                                pack(left[2] * scale_high, left[3] * scale_high),
                                pack(right[0] * scale_low, right[1] * scale_low),
                                pack(right[2] * scale_high, right[3] * scale_high)};
    scratch.store_a(packed, scratch_row, first_unit + 2 * step, lane);
  }
}

/// The same with A fragments.
template <int kFeatures, int kTileColumns>
__device__ __forceinline__ void store_scaled_rows(const Tile<kTileColumns>& tile,
                                                  int row,
                                                  const uint32_t (&a)[kFeatures / 16][4],
                                                  float scale_low,
                                                  float scale_high,
                                                  int lane,
                                                  int first_unit = 0) {
#pragma unroll
  for (int step = 0; step < kFeatures / 16; ++step) {
    uint32_t scaled[4];
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const float2 pair = unpack(a[step][i]);
      const float scale = (i & 1) == 0 ? scale_low : scale_high;
      scaled[i] = pack(pair.x * scale, pair.y * scale);
    }
    tile.store_a(scaled, row, first_unit + 2 * step, lane);
  }
}

/// Writes 16 rows of C tiles to a pair of tiles, as hi + lo.
template <int kColumns>
__device__ __forceinline__ void store_split_rows(const Tile<kColumns>& hi,
                                                 const Tile<kColumns>& lo,
                                                 int row,
                                                 const float (&c)[kColumns / 8][4],
                                                 int lane) {
#pragma unroll
  for (int step = 0; step < kColumns / 16; ++step) {
    uint32_t high[4], low[4];
#pragma unroll
    for (int i = 0; i < 4; ++i)
      split(
          c[2 * step + i / 2][2 * (i & 1)], c[2 * step + i / 2][2 * (i & 1) + 1], high[i], low[i]);
    hi.store_a(high, row, 2 * step, lane);
    lo.store_a(low, row, 2 * step, lane);
  }
}

/// c += A B for 16 rows, given as fragments, with B = hi + lo held [k][n].
template <int kSteps, int kColumns>
__device__ __forceinline__ void multiply_split(float (&c)[kColumns / 8][4],
                                               const uint32_t (&a)[kSteps][4],
                                               const Tile<kColumns>& hi,
                                               const Tile<kColumns>& lo,
                                               int lane) {
#pragma unroll
  for (int step = 0; step < kSteps; ++step)
#pragma unroll
    for (int n = 0; n < kColumns / 16; ++n) {
      uint32_t b[4];
      hi.load_b_transposed(b, step * 16, 2 * n, lane);
      mma(c[2 * n], a[step], b[0], b[1]);
      mma(c[2 * n + 1], a[step], b[2], b[3]);
      lo.load_b_transposed(b, step * 16, 2 * n, lane);
      mma(c[2 * n], a[step], b[0], b[1]);
      mma(c[2 * n + 1], a[step], b[2], b[3]);
    }
}

/// c += A B^T for 16 rows, given as fragments, with B = hi + lo held [n][k]: its rows from `row`
/// on.
template <int kRows, int kColumns>
__device__ __forceinline__ void multiply_split_transposed(float (&c)[kRows / 8][4],
                                                          const uint32_t (&a)[kColumns / 16][4],
                                                          const Tile<kColumns>& hi,
                                                          const Tile<kColumns>& lo,
                                                          int lane,
                                                          int row = 0) {
#pragma unroll
  for (int step = 0; step < kColumns / 16; ++step)
#pragma unroll
    for (int n = 0; n < kRows / 16; ++n) {
      uint32_t b[4];
      hi.load_b(b, row + 16 * n, 2 * step, lane);
      mma(c[2 * n], a[step], b[0], b[1]);
      mma(c[2 * n + 1], a[step], b[2], b[3]);
      lo.load_b(b, row + 16 * n, 2 * step, lane);
      mma(c[2 * n], a[step], b[0], b[1]);
      mma(c[2 * n + 1], a[step], b[2], b[3]);
    }
}

/// Accumulators of 16 columns as an operand of the next product.
__device__ __forceinline__ void pack_operand(uint32_t (&operand)[4], const float (&x)[2][4]) {
  operand[0] = pack(x[0][0], x[0][1]);
  operand[1] = pack(x[0][2], x[0][3]);
  operand[2] = pack(x[1][0], x[1][1]);
  operand[3] = pack(x[1][2], x[1][3]);
}

__device__ __forceinline__ const bf16* rows_of(const View& view, int batch, int head) {
  return static_cast<const bf16*>(view.data) + batch * view.batch_stride + head * view.head_stride;
}
__device__ __forceinline__ bf16* mutable_rows_of(const View& view, int batch, int head) {
  return static_cast<bf16*>(view.data) + batch * view.batch_stride + head * view.head_stride;
}

/// Row block of a warp: warps that share a scheduler (warp % 4) get blocks whose triangular work
/// adds up to the same.
template <int kWarps>
__device__ __forceinline__ int row_block_of(int warp) {
  return kWarps == 8 && warp >= 4 ? 11 - warp : warp;
}

/// Masks the 16 x 16 block (rows from row0, columns from column0) of a causal matrix: keeps start
/// <= column <= row.
struct CausalMask {
  int start_low, start_high;  ///< first visible column for this lane's two rows

  __device__ __forceinline__ bool keep(int row, int column, bool high) const {
    return column <= row && column >= (high ? start_high : start_low);
  }

  /// Zeros where a row does not see the key: accumulators of 16 rows and columns.
  __device__ __forceinline__ void clear_unseen(float (&x)[2][4],
                                               int row0,
                                               int column0,
                                               int lane) const {
    const int low = row0 + lane / 4, high = low + 8;
#pragma unroll
    for (int n = 0; n < 2; ++n)
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const int column = column0 + n * 8 + 2 * (lane & 3) + (i & 1);
        if (!keep(i < 2 ? low : high, column, i >= 2)) x[n][i] = 0.0F;
      }
  }
};

}  // namespace t2r::kernels::cuda
