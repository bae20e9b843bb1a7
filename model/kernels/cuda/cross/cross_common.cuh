#pragma once

// What the cross-attention kernels share. Words as in causal/causal_common.cuh, and:
//
// source           what keys and values are of; padding is masked
// S, z             sums of phi(k) v^T and phi(k) over the source; in a record S is hi + lo
// D                a query's denominator, |phi(q) . z| + added, or the floor
// R, e             phi(q) / D; -(d o . o) d D / d (phi(q) . z)
// dS, dz           sums of R d o^T and phi(q) e / D over the queries; they take S's and z's places
// part             whole: one launch; or a launch for the source and one for the queries
// share            a block's sums, which blocks of a cluster (or a later launch) add up

#include "model/kernels/cuda/causal/causal_common.cuh"
#include "model/kernels/cuda/cross/cross_instances.h"
#include "model/kernels/cuda/sm90/cluster.cuh"

namespace t2r::kernels::cuda {

constexpr int kCrossRows = 64, kCrossWarps = kCrossRows / 16, kCrossThreads = 32 * kCrossWarps;

constexpr int max_of(int x, int y) {
  return x > y ? x : y;
}
/// Blocks of so much shared memory on a multiprocessor of Hopper, at most four: that leaves a
/// thread 128 registers.
constexpr int blocks_with(int bytes) {
  return bytes > 113 * 1024 ? 1 : bytes > 75 * 1024 ? 2 : bytes > 56 * 1024 ? 3 : 4;
}

/// One block of threads: some chunks of the source and of the queries of one state, for a group of
/// sequences. Warp i owns rows 16 i to 16 i + 15 of a chunk.
struct CrossBlock {
  int head, rank, segments, batch, batch_end;
  int source_begin, source_end, query_begin, query_end;  // chunks
  int64_t part;                                          // of (group, head, rank)

  __device__ CrossBlock(const CrossArguments& a, CrossPart launch) {
    const CrossPlan& plan = a.plan;
    segments = launch == CrossPart::kSource ? plan.source.segments : plan.queries.segments;
    part = blockIdx.x;
    rank = blockIdx.x % segments;
    const int slot = blockIdx.x / segments, group = slot / a.shape.state_heads;
    head = slot % a.shape.state_heads;
    batch = group * plan.group_size;
    batch_end = min(batch + plan.group_size, a.shape.batch);
    source_begin = min(rank * plan.source.chunks_per_segment, plan.source.chunks);
    source_end = launch == CrossPart::kQueries
                     ? source_begin
                     : min(source_begin + plan.source.chunks_per_segment, plan.source.chunks);
    query_begin = min(rank * plan.queries.chunks_per_segment, plan.queries.chunks);
    query_end = launch == CrossPart::kSource
                    ? query_begin
                    : min(query_begin + plan.queries.chunks_per_segment, plan.queries.chunks);
  }
};

/// The chunks of a block in the order of their use: for every sequence `sums` of the source, those
/// of the queries head by head, `sources` of the source again.
struct CrossCursor {
  int batch, batch_end, index, sums, queries, heads, sources;

  __device__ CrossCursor(const CrossBlock& block, bool sums_first, int heads, bool sources_last)
      : batch_end(block.batch_end),
        index(0),
        sums(sums_first ? block.source_end - block.source_begin : 0),
        queries(block.query_end - block.query_begin),
        heads(heads),
        sources(sources_last ? block.source_end - block.source_begin : 0) {
    batch = sums + queries + sources > 0 ? block.batch : batch_end;
  }

  /// Calls source(batch, chunk) or query(batch, head, chunk), counted from the block's first; then
  /// goes on.
  template <class Source, class Query>
  __device__ __forceinline__ void next(const Source& source, const Query& query) {
    if (batch >= batch_end) return;
    const int of_queries = index - sums;
    if (of_queries < 0) {
      source(batch, index);
    } else if (of_queries < queries * heads) {
      const int head = heads == 1 ? 0 : of_queries / queries;
      query(batch, head, of_queries - head * queries);
    } else {
      source(batch, of_queries - queries * heads);
    }
    if (++index == sums + queries * heads + sources) {
      index = 0;
      ++batch;
    }
  }
};

/// A state in shared memory: a record, and for clusters a block's own share in float32.
template <int kHead, int kFeatures>
struct SharedState {
  static constexpr int kRecordBytes = 4 * kFeatures * kHead + 4 * kFeatures,
                       kShareBytes = kRecordBytes;
  uint32_t base, share;
  float* z;

  __device__ SharedState(unsigned char* memory, int record_at, int share_at)
      : base(shared_address(memory) + record_at),
        share(shared_address(memory) + share_at),
        z(reinterpret_cast<float*>(memory + record_at + 4 * kFeatures * kHead)) {}

  __device__ Tile<kHead> hi() const { return {base}; }
  __device__ Tile<kHead> lo() const { return {base + kFeatures * kHead * 2}; }

  /// The sum over all blocks of the cluster; the second sum is warp 0's. Nobody may be reading the
  /// record; behind it all may.
  template <class Product>
  __device__ __forceinline__ void add_up(Product& s,
                                         const WeightedColumnSums<kFeatures>& z_of_warp,
                                         int segments,
                                         int rank) const {
    const int lane = threadIdx.x & 31, warp = threadIdx.x >> 5;
    if (segments == 1) {
      s.store_split(hi(), lo(), lane);
      if (warp == 0) z_of_warp.for_each(lane, [&](int feature, float sum) { z[feature] = sum; });
      __syncthreads();
      return;
    }
    constexpr int kPairs = kFeatures * kHead / 2;
    s.for_each_pair(lane, [&](int row, int column, const float* pair) {
      asm volatile("st.shared.v2.f32 [%0], {%1, %2};\n" ::"r"(share + (row * kHead + column) * 4),
                   "f"(pair[0]),
                   "f"(pair[1])
                   : "memory");
    });
    if (warp == 0) {
      z_of_warp.for_each(lane, [&](int feature, float sum) {
        asm volatile("st.shared.f32 [%0], %1;\n" ::"r"(share + (2 * kPairs + feature) * 4), "f"(sum)
                     : "memory");
      });
    }
    sync_cluster();
    // Every block adds up some of the pairs, always in the same order, and gives the sums to all.
    for (int pair = rank * kCrossThreads + threadIdx.x; pair < kPairs + kFeatures / 2;
         pair += segments * kCrossThreads) {
      float2 sum = {0.0F, 0.0F};
#pragma unroll 8
      for (int from = 0; from < segments; ++from) {
        const float2 more = load_pair_at(address_at_rank(share + 8 * pair, from));
        sum = {sum.x + more.x, sum.y + more.y};
      }
      uint32_t high = __float_as_uint(sum.x), low = __float_as_uint(sum.y);
      uint32_t high_at = base + 8 * pair,
               low_at = high_at + 4;  // of z, which lies behind S in both forms
      if (pair < kPairs) {
        split(sum.x, sum.y, high, low);
        const int row = 2 * pair / kHead, column = 2 * pair % kHead;
        high_at = hi().at(row, column / 8) + column % 8 * 2;
        low_at = high_at + kFeatures * kHead * 2;
      }
      for (int to = 0; to < segments; ++to) {
        store_at(address_at_rank(high_at, to), high);
        store_at(address_at_rank(low_at, to), low);
      }
    }
    sync_cluster();
  }

  /// Starts copying a record from device memory.
  __device__ __forceinline__ void load(const unsigned char* record) const {
    for (int i = threadIdx.x; i < kRecordBytes / 16; i += kCrossThreads)
      copy_async_16(base + 16 * i, record + 16 * i, true);
  }
  __device__ __forceinline__ void save(unsigned char* record) const {
    for (int i = threadIdx.x; i < kRecordBytes / 16; i += kCrossThreads)
      reinterpret_cast<uint4*>(record)[i] = load_shared_16(base + 16 * i);
  }
};

/// Writes a block's share of S and z, of d S and d z, or of d W and d b to device memory; `sums` is
/// this warp's if `owns_sums`.
template <int kHead, int kFeatures, class Product>
__device__ __forceinline__ void write_share(float* to,
                                            Product& product,
                                            const WeightedColumnSums<kFeatures>& sums,
                                            bool owns_sums,
                                            int features,
                                            int lane) {
  product.for_each_pair(lane, [&](int row, int column, const float* pair) {
    if (row < features) *reinterpret_cast<float2*>(to + row * kHead + column) = {pair[0], pair[1]};
  });
  if (owns_sums)
    sums.for_each(lane, [&](int feature, float sum) {
      if (feature < features) to[features * kHead + feature] = sum;
    });
}

/// Starts copying this warp's 16 rows of a chunk whose first token is at `from`; tokens from
/// `valid` on, and those whose `mask`, if given, is 0 (padding), are not read and become zeros.
template <int kColumns>
__device__ __forceinline__ void copy_chunk_rows(const Tile<kColumns>& tile,
                                                const bf16* from,
                                                int64_t token_stride,
                                                const unsigned char* mask,
                                                int row0,
                                                int valid,
                                                int valid_units,
                                                int lane) {
  constexpr int kUnits = kColumns / 8, kRowsAtOnce = 32 / kUnits;
  const int row = row0 + lane / kUnits, unit = lane % kUnits;
  const bf16* source = from + row * token_stride + unit * 8;
#pragma unroll
  for (int i = 0; i < 16 / kRowsAtOnce; ++i, source += kRowsAtOnce * token_stride) {
    const int r = row + i * kRowsAtOnce;
    copy_async_16(tile.at(r, unit),
                  source,
                  r < valid && unit < valid_units && (mask == nullptr || mask[r] != 0));
  }
}

/// Rows of a chunk that are computed: whole pairs of 16, so that products need no mask.
__device__ __forceinline__ int rounded_rows(int valid) {
  return (min(valid, kCrossRows) + 31) & ~31;
}

/// product += X^T Y over the first `rows` rows, a multiple of 32.
template <int kFeatures, int kColumns, class Product>
__device__ __forceinline__ void add_rows(
    Product& product, const Tile<kFeatures>& x, const Tile<kColumns>& y, int rows, int lane) {
#pragma unroll
  for (int step = 0; step < kCrossRows / 16; step += 2) {
    if (16 * step >= rows) break;
    uint32_t b[Product::kN][4];  // [n]: the fragments of both k-steps
#pragma unroll
    for (int n = 0; n < Product::kN; ++n)
      y.load_b_column_transposed(b[n], step * 16, product.first_n + n, lane);
#pragma unroll
    for (int half = 0; half < 2; ++half)
#pragma unroll
      for (int m = 0; m < Product::kM; ++m) {
        if (!product.owns_m(m)) continue;
        uint32_t a[4];
        x.load_a_transposed(a, (step + half) * 16, (product.first_m + m) * 2, lane);
#pragma unroll
        for (int n = 0; n < Product::kN; ++n)
          mma(product.value[m][n], a, b[n][2 * half], b[n][2 * half + 1]);
      }
  }
}

/// sums += weighted rows of X, over the first `rows` rows; `weights` as in
/// WeightedColumnSums::add().
template <int kFeatures, class Weights>
__device__ __forceinline__ void add_weighted_rows(WeightedColumnSums<kFeatures>& sums,
                                                  const Tile<kFeatures>& x,
                                                  int rows,
                                                  int lane,
                                                  const Weights& weights) {
#pragma unroll
  for (int step = 0; step < kCrossRows / 16; ++step) {
    if (16 * step >= rows) break;
    const uint32_t b0 = weights(step * 16 + 2 * (lane & 3)),
                   b1 = weights(step * 16 + 8 + 2 * (lane & 3));
#pragma unroll
    for (int m = 0; m < kFeatures / 16; ++m) {
      uint32_t a[4];
      x.load_a_transposed(a, step * 16, 2 * m, lane);
      mma(sums.value[m], a, b0, b1);
    }
  }
}

/// Features of 16 rows of k, to the own rows of `phi_k`; 0 for padding and behind the source.
template <int kHead, int kFeatures>
__device__ __forceinline__ void source_features(uint32_t (&phi)[kFeatures / 16][4],
                                                const Tile<kHead>& k,
                                                const Tile<kHead>& weight,
                                                const float* bias,
                                                bool low_exists,
                                                bool high_exists,
                                                int row0,
                                                int lane) {
  float y[kFeatures / 8][4];
  project<kHead, kFeatures>(y, k, weight, row0, lane);
  activate<kFeatures>(phi, y, bias, 1.0F, low_exists, high_exists, lane);
}

/// s += phi(k)^T v, z (of warp 0) += phi(k) for a chunk that this warp has its rows of. A barrier
/// in between, and one has to follow.
template <int kHead, int kFeatures, bool kMap, int kInput, class Product>
__device__ __forceinline__ void sum_source_chunk(Product& s,
                                                 WeightedColumnSums<kFeatures>& z,
                                                 const Tile<kInput>& k,
                                                 const Tile<kHead>& v,
                                                 const Tile<kFeatures>& phi_k,
                                                 const Tile<kHead>& weight,
                                                 const float* bias,
                                                 const unsigned char* mask,
                                                 int first,
                                                 int length,
                                                 int row0,
                                                 int lane) {
  const int rows = rounded_rows(length - first);
  if constexpr (kMap) {
    if (row0 < rows) {
      const int low = first + row0 + lane / 4, high = low + 8;
      uint32_t phi[kFeatures / 16][4];
      source_features<kHead, kFeatures>(phi,
                                        k,
                                        weight,
                                        bias,
                                        low < length && (mask == nullptr || mask[low] != 0),
                                        high < length && (mask == nullptr || mask[high] != 0),
                                        row0,
                                        lane);
      store_rows<kFeatures>(phi_k, row0, phi, lane);
    }
  }
  __syncthreads();
  add_rows(s, phi_k, v, rows, lane);
  if (row0 == 0) {
    const uint32_t ones = ones_column(lane);
    add_weighted_rows(z, phi_k, rows, lane, [ones](int) { return ones; });
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
    grad_y[n / 2][2 * (n & 1)] = pack(low.x > 0.0F ? dphi[n][0] * scale_low : 0.0F,
                                      low.y > 0.0F ? dphi[n][1] * scale_low : 0.0F);
    grad_y[n / 2][2 * (n & 1) + 1] = pack(high.x > 0.0F ? dphi[n][2] * scale_high : 0.0F,
                                          high.y > 0.0F ? dphi[n][3] * scale_high : 0.0F);
  }
}

}  // namespace t2r::kernels::cuda
