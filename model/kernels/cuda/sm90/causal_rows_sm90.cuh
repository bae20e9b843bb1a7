#pragma once

// What a warp of the Hopper kernels does with its rows of accumulators. A lane holds of two rows,
// `low` and low + 8, the columns 8 n + 2 (lane & 3) and the next: values 0 and 1 of x[n] for `low`,
// 2 and 3 for the other. Packed in pairs, as operands of the next product, they are [n / 2][2 (n &
// 1)] and [n / 2][2 (n & 1) + 1].

#include "model/kernels/cuda/sm90/causal_sm90.cuh"

namespace t2r::kernels::cuda::sm90 {

/// Something of each of a lane's two rows.
struct OfRows {
  float low = 0.0F, high = 0.0F;
};

__device__ __forceinline__ OfRows row_sums(const OfRows& x) {
  return {row_sum(x.low), row_sum(x.high)};
}

/// Whether value i of x[n] stands in a column that is not after its row.
__device__ __forceinline__ bool is_seen(int n, int i, int low, int lane) {
  return n * 8 + (i & 1) <= (i < 2 ? low : low + 8) - 2 * (lane & 3);
}

/// What a warp's rows see of a chunk's 64 columns. Only where the diagonal runs do lanes differ.
class PairMasks {
 public:
  /// Rows see what is not after them, or not before them.
  __device__ __forceinline__ PairMasks(bool not_after, int warp, int lane) {
    const int row = lane / 4, column = 2 * (lane & 3);
    const uint32_t first = not_after ? column <= row : column >= row,
                   second = not_after ? column + 1 <= row : column + 1 >= row;
    const uint32_t diagonal = first * 0xffffu | second * 0xffff0000u, left = not_after ? ~0u : 0u;
#pragma unroll
    for (int i = 0; i < 9; ++i)
      masks_[i] = i - 1 < 2 * warp ? left : i - 1 > 2 * warp ? ~left : diagonal;
  }
  __device__ __forceinline__ void clear(uint32_t (&pairs)[4][4]) const {
#pragma unroll
    for (int n = 0; n < 8; ++n)
#pragma unroll
      for (int half = 0; half < 2; ++half) pairs[n / 2][2 * (n & 1) + half] &= masks_[n + 1 - half];
  }

 private:
  uint32_t masks_[9];  // of columns 8 (i - 1) and on for `low`; the other row lies eight rows, so
                       // one mask, further
};

/// What the launch for the rows has left for the launch for the columns, of this lane's rows `low`
/// and low + 8 behind `first`.
struct RowValues {
  OfRows denominator{1.0F, 1.0F}, e;

  __device__ __forceinline__
  RowValues(const float* denominators, const float* es, int first, int low, int length) {
    if (first + low < length) {
      denominator.low = denominators[first + low];
      e.low = es[first + low];
    }
    if (first + low + 8 < length) {
      denominator.high = denominators[first + low + 8];
      e.high = es[first + low + 8];
    }
  }
};

/// Adds phi . x to `sums`, of the lane's columns; x [kFeatures] in shared memory.
template <int kFeatures>
__device__ __forceinline__ void add_dots(OfRows& sums,
                                         const uint32_t (&phi)[kFeatures / 16][4],
                                         const float* x,
                                         int lane) {
#pragma unroll
  for (int n = 0; n < kFeatures / 8; ++n) {
    const float2 pair = *reinterpret_cast<const float2*>(x + 8 * n + 2 * (lane & 3));
    const float2 of_low = unpack(phi[n / 2][2 * (n & 1)]),
                 of_high = unpack(phi[n / 2][2 * (n & 1) + 1]);
    sums.low = fmaf(of_low.x, pair.x, fmaf(of_low.y, pair.y, sums.low));
    sums.high = fmaf(of_high.x, pair.x, fmaf(of_high.y, pair.y, sums.high));
  }
}

/// Denominators of a chunk's rows and e = -(d o . o), from weights p = phi(q) . phi(k), dp = d o .
/// v and, for what comes from before the chunk, dphi = (S - z m^T) d o, d o . m and phi(q) . z.
class RowTerms {
 public:
  template <int kFeatures>
  __device__ __forceinline__ void add_before(const uint32_t (&phi)[kFeatures / 16][4],
                                             const float (&dphi)[kFeatures / 8][4]) {
#pragma unroll
    for (int n = 0; n < kFeatures / 8; ++n) {
      const float2 of_low = unpack(phi[n / 2][2 * (n & 1)]),
                   of_high = unpack(phi[n / 2][2 * (n & 1) + 1]);
      numerator_.low = fmaf(of_low.x, dphi[n][0], fmaf(of_low.y, dphi[n][1], numerator_.low));
      numerator_.high = fmaf(of_high.x, dphi[n][2], fmaf(of_high.y, dphi[n][3], numerator_.high));
    }
  }
  __device__ __forceinline__ void add_seen(const float (&p)[8][4],
                                           const float (&dp)[8][4],
                                           int low,
                                           int lane) {
    float weights[4] = {}, products[4] = {};
#pragma unroll
    for (int n = 0; n < 8; ++n)
#pragma unroll
      for (int i = 0; i < 4; ++i)
        if (is_seen(n, i, low, lane)) {
          weights[i] += p[n][i];
          products[i] = fmaf(p[n][i], dp[n][i], products[i]);
        }
    denominator_.low += weights[0] + weights[1];
    denominator_.high += weights[2] + weights[3];
    numerator_.low += products[0] + products[1];
    numerator_.high += products[2] + products[3];
  }
  /// After everything has been added. `before`: phi(q) . z of the lane's columns; `mean`: d o . m
  /// of the whole row.
  __device__ __forceinline__ void finish(const OfRows& before,
                                         const OfRows& mean,
                                         const Rule& rule) {
    const OfRows whole = row_sums(before);
    denominator_ = row_sums(denominator_);
    denominator_ = {denominator_.low + whole.low + rule.added,
                    denominator_.high + whole.high + rule.added};
    numerator_ = {fmaf(mean.low, whole.low, row_sum(numerator_.low)),
                  fmaf(mean.high, whole.high, row_sum(numerator_.high))};
    inverse = {1.0F / fmaxf(denominator_.low, rule.floor),
               1.0F / fmaxf(denominator_.high, rule.floor)};
    e = {denominator_.low < rule.floor ? 0.0F : -numerator_.low * inverse.low,
         denominator_.high < rule.floor ? 0.0F : -numerator_.high * inverse.high};
  }
  /// What RowValues reads: of the rows among the `valid` ones behind `first`.
  __device__ __forceinline__ void save(float* denominators,
                                       float* es,
                                       int first,
                                       int low,
                                       int valid,
                                       const Rule& rule,
                                       int lane) const {
    if ((lane & 3) != 0) return;
    if (low < valid) {
      denominators[first + low] = fmaxf(denominator_.low, rule.floor);
      es[first + low] = e.low;
    }
    if (low + 8 < valid) {
      denominators[first + low + 8] = fmaxf(denominator_.high, rule.floor);
      es[first + low + 8] = e.high;
    }
  }

  OfRows inverse, e;  // of finish()

 private:
  OfRows denominator_, numerator_;  // the second: d o . numerator
};

/// x += factor z^T; z [kFeatures] in shared memory.
template <int kFeatures>
__device__ __forceinline__ void add_outer(float (&x)[kFeatures / 8][4],
                                          const OfRows& factor,
                                          const float* z,
                                          int lane) {
#pragma unroll
  for (int n = 0; n < kFeatures / 8; ++n) {
    const float2 pair = *reinterpret_cast<const float2*>(z + 8 * n + 2 * (lane & 3));
    x[n][0] = fmaf(factor.low, pair.x, x[n][0]);
    x[n][1] = fmaf(factor.low, pair.y, x[n][1]);
    x[n][2] = fmaf(factor.high, pair.x, x[n][2]);
    x[n][3] = fmaf(factor.high, pair.y, x[n][3]);
  }
}

/// Packs x + added, row by row.
__device__ __forceinline__ void pack_rows(uint32_t (&pairs)[4][4],
                                          const float (&x)[8][4],
                                          const OfRows& added) {
#pragma unroll
  for (int n = 0; n < 8; ++n) {
    pairs[n / 2][2 * (n & 1)] = pack(x[n][0] + added.low, x[n][1] + added.low);
    pairs[n / 2][2 * (n & 1) + 1] = pack(x[n][2] + added.high, x[n][3] + added.high);
  }
}

/// Packs the weights p of a chunk's columns, and dp + e; e [64] in shared memory.
__device__ __forceinline__ void pack_columns(uint32_t (&weights)[4][4],
                                             uint32_t (&grad_weights)[4][4],
                                             const float (&p)[8][4],
                                             const float (&dp)[8][4],
                                             const float* e,
                                             int lane) {
#pragma unroll
  for (int n = 0; n < 8; ++n) {
    const float2 pair = *reinterpret_cast<const float2*>(e + 8 * n + 2 * (lane & 3));
    weights[n / 2][2 * (n & 1)] = pack(p[n][0], p[n][1]);
    weights[n / 2][2 * (n & 1) + 1] = pack(p[n][2], p[n][3]);
    grad_weights[n / 2][2 * (n & 1)] = pack(dp[n][0] + pair.x, dp[n][1] + pair.y);
    grad_weights[n / 2][2 * (n & 1) + 1] = pack(dp[n][2] + pair.x, dp[n][3] + pair.y);
  }
}

/// d y of the queries: dphi times `scale`, where phi = relu(y) is on.
template <int kFeatures>
__device__ __forceinline__ void grad_map_of_rows(uint32_t (&grad_y)[kFeatures / 16][4],
                                                 const uint32_t (&phi)[kFeatures / 16][4],
                                                 const float (&dphi)[kFeatures / 8][4],
                                                 const OfRows& scale) {
#pragma unroll
  for (int n = 0; n < kFeatures / 8; ++n) {
    const float2 of_low = unpack(phi[n / 2][2 * (n & 1)]),
                 of_high = unpack(phi[n / 2][2 * (n & 1) + 1]);
    grad_y[n / 2][2 * (n & 1)] = pack(of_low.x > 0.0F ? dphi[n][0] * scale.low : 0.0F,
                                      of_low.y > 0.0F ? dphi[n][1] * scale.low : 0.0F);
    grad_y[n / 2][2 * (n & 1) + 1] = pack(of_high.x > 0.0F ? dphi[n][2] * scale.high : 0.0F,
                                          of_high.y > 0.0F ? dphi[n][3] * scale.high : 0.0F);
  }
}

/// d y of the keys: dphi + dz, with a map where phi is on; dz [kFeatures] in shared memory.
template <int kFeatures, bool kMap>
__device__ __forceinline__ void grad_map_of_columns(uint32_t (&grad_y)[kFeatures / 16][4],
                                                    const uint32_t (&phi)[kFeatures / 16][4],
                                                    const float (&dphi)[kFeatures / 8][4],
                                                    const float* dz,
                                                    int lane) {
#pragma unroll
  for (int n = 0; n < kFeatures / 8; ++n) {
    const float2 pair = *reinterpret_cast<const float2*>(dz + 8 * n + 2 * (lane & 3));
    const float2 of_low = unpack(phi[n / 2][2 * (n & 1)]),
                 of_high = unpack(phi[n / 2][2 * (n & 1) + 1]);
    grad_y[n / 2][2 * (n & 1)] = pack(!kMap || of_low.x > 0.0F ? dphi[n][0] + pair.x : 0.0F,
                                      !kMap || of_low.y > 0.0F ? dphi[n][1] + pair.y : 0.0F);
    grad_y[n / 2][2 * (n & 1) + 1] = pack(!kMap || of_high.x > 0.0F ? dphi[n][2] + pair.x : 0.0F,
                                          !kMap || of_high.y > 0.0F ? dphi[n][3] + pair.y : 0.0F);
  }
}

}  // namespace t2r::kernels::cuda::sm90
