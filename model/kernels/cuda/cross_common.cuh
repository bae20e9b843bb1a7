#pragma once

#include "model/kernels/cuda/causal_common.cuh"
#include "model/kernels/cuda/cross_attention.h"

namespace t2r::kernels::cuda {

/// One block of threads: some chunks of the queries of one head, or of the source of one state. Warp i owns rows 16 i to 16 i + 15.
struct CrossBlock {
  int batch, head, state_head, chunk_begin, chunk_end;
  int64_t item, part;  ///< of (batch, head), and of (batch, head, segment)

  __device__ CrossBlock(const Shape& shape, const Cut& cut, bool queries) {
    const int heads = queries ? shape.query_heads : shape.state_heads;
    item = blockIdx.x;
    batch = blockIdx.x / heads;
    head = blockIdx.x % heads;
    state_head = head / (heads / shape.state_heads);
    chunk_begin = blockIdx.y * cut.chunks_per_segment;
    chunk_end = min(chunk_begin + cut.chunks_per_segment, cut.chunks);
    part = item * cut.segments + blockIdx.y;
  }

  __device__ int64_t state(const Shape& shape) const { return int64_t{batch} * shape.state_heads + state_head; }
};

/// Starts copying W, padded with zeros, and writes b as float32.
template <int kHead, int kFeatures, int kThreads>
__device__ __forceinline__ void load_map(const Tile<kHead>& weight, float* bias, const CrossArguments& a, int state_head) {
  const int features = a.shape.feature_size;
  const bf16* const w = static_cast<const bf16*>(a.weight) + int64_t{state_head} * features * kHead;
  for (int i = threadIdx.x; i < kFeatures * kHead / 8; i += kThreads) {
    const int row = i / (kHead / 8), unit = i % (kHead / 8);
    copy_async_16(weight.at(row, unit), w + (row < features ? row * kHead + unit * 8 : 0), row < features);
  }
  const bf16* const b = static_cast<const bf16*>(a.bias) + int64_t{state_head} * features;
  for (int i = threadIdx.x; i < kFeatures; i += kThreads) bias[i] = i < features ? __bfloat162float(b[i]) : 0.0F;
}

/// Starts copying a state record.
template <int kHead, int kFeatures, int kThreads>
__device__ __forceinline__ void load_record(uint32_t to, const unsigned char* record) {
  for (int i = threadIdx.x; i < (4 * kFeatures * kHead + 4 * kFeatures) / 16; i += kThreads) {
    copy_async_16(to + 16 * i, record + 16 * i, true);
  }
}

/// copy_rows_async() for tokens of the source: `mask`, if given, is that of the chunk's first token; padding becomes zeros.
template <int kColumns>
__device__ __forceinline__ void copy_source_rows_async(const Tile<kColumns>& tile,
                                                       const bf16* from,
                                                       int64_t token_stride,
                                                       const unsigned char* mask,
                                                       int row,
                                                       int valid_rows,
                                                       int valid_units,
                                                       int lane) {
  constexpr int kUnits = kColumns / 8;
#pragma unroll
  for (int i = 0; i < kUnits / 2; ++i) {
    const int index = lane + 32 * i, r = row + index / kUnits, unit = index % kUnits;
    const bool valid = r < valid_rows && unit < valid_units && (mask == nullptr || mask[r] != 0);
    copy_async_16(tile.at(r, unit), from + (valid ? r * token_stride + unit * 8 : 0), valid);
  }
}

/// The denominator of one query from n = phi(q) . z, and d denominator / d n.
struct Denominator {
  float value, slope;

  __device__ __forceinline__ Denominator(float n, const Rule& rule, bool absolute) {
    const float raw = (absolute ? fabsf(n) : n) + rule.added;
    value = fmaxf(raw, rule.floor);
    slope = raw < rule.floor ? 0.0F : !absolute || n > 0.0F ? 1.0F : n < 0.0F ? -1.0F : 0.0F;
  }
};

/// c = A B for 16 rows, given as fragments, with B = hi + lo held [k][n].
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

/// c += A B^T for 16 rows, given as fragments, with B = hi + lo held [n][k].
template <int kRows, int kColumns>
__device__ __forceinline__ void multiply_split_transposed(float (&c)[kRows / 8][4],
                                                          const uint32_t (&a)[kColumns / 16][4],
                                                          const Tile<kColumns>& hi,
                                                          const Tile<kColumns>& lo,
                                                          int lane) {
#pragma unroll
  for (int step = 0; step < kColumns / 16; ++step)
#pragma unroll
    for (int n = 0; n < kRows / 16; ++n) {
      uint32_t b[4];
      hi.load_b(b, 16 * n, 2 * step, lane);
      mma(c[2 * n], a[step], b[0], b[1]);
      mma(c[2 * n + 1], a[step], b[2], b[3]);
      lo.load_b(b, 16 * n, 2 * step, lane);
      mma(c[2 * n], a[step], b[0], b[1]);
      mma(c[2 * n + 1], a[step], b[2], b[3]);
    }
}

/// c = d y W for 16 rows, given as fragments: the gradient of the map's input.
template <int kHead, int kFeatures>
__device__ __forceinline__ void project_back(float (&c)[kHead / 8][4],
                                             const uint32_t (&grad_y)[kFeatures / 16][4],
                                             const Tile<kHead>& weight,
                                             int lane) {
#pragma unroll
  for (auto& tile : c)
#pragma unroll
    for (float& x : tile) x = 0.0F;
#pragma unroll
  for (int step = 0; step < kFeatures / 16; ++step)
#pragma unroll
    for (int n = 0; n < kHead / 16; ++n) {
      uint32_t b[4];
      weight.load_b_transposed(b, step * 16, 2 * n, lane);
      mma(c[2 * n], grad_y[step], b[0], b[1]);
      mma(c[2 * n + 1], grad_y[step], b[2], b[3]);
    }
}

/// Gradient through relu, rounded and packed as A fragments: 0 where the feature is off.
template <int kFeatures>
__device__ __forceinline__ void activate_back(uint32_t (&grad_y)[kFeatures / 16][4],
                                              const uint32_t (&phi)[kFeatures / 16][4],
                                              const float (&dphi)[kFeatures / 8][4],
                                              float scale_low,
                                              float scale_high) {
#pragma unroll
  for (int n = 0; n < kFeatures / 8; ++n) {
    const float2 low = unpack(phi[n / 2][2 * (n & 1)]), high = unpack(phi[n / 2][2 * (n & 1) + 1]);
    grad_y[n / 2][2 * (n & 1)] = pack(low.x > 0.0F ? dphi[n][0] * scale_low : 0.0F, low.y > 0.0F ? dphi[n][1] * scale_low : 0.0F);
    grad_y[n / 2][2 * (n & 1) + 1] = pack(high.x > 0.0F ? dphi[n][2] * scale_high : 0.0F, high.y > 0.0F ? dphi[n][3] * scale_high : 0.0F);
  }
}

/// Writes a block's share of a [features, kHead] matrix.
template <int kHead, class Product>
__device__ __forceinline__ void write_product(float* to, Product& product, int features, int lane) {
  product.for_each_pair(lane, [&](int row, int column, const float* pair) {
    if (row < features) *reinterpret_cast<float2*>(to + row * kHead + column) = {pair[0], pair[1]};
  });
}

}  // namespace t2r::kernels::cuda
