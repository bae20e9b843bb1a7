#pragma once

#include "model/kernels/cuda/cross_common.cuh"

namespace t2r::kernels::cuda {

/// Shared memory of the kernel below, in bytes from its start.
template <int kHead, int kFeatures, int kChunk, bool kMap>
struct CrossSumsMemory {
  static constexpr int kInput = kMap ? kHead : kFeatures;  // columns of k
  static constexpr int kV = kChunk * kInput * 2;
  static constexpr int kStage = kV + kChunk * kHead * 2;
  static constexpr int kWeight = 2 * kStage;
  static constexpr int kPhiK = kWeight + (kMap ? kFeatures * kHead * 2 : 0);
  static constexpr int kBias = kPhiK + (kMap ? kChunk * kFeatures * 2 : 0);
  static constexpr int kBytes = kBias + 4 * kFeatures;
};

/// A block's share of S and z. Per chunk: features of the own rows | barrier | S += phi(k)^T v, z | barrier.
template <int kHead, int kFeatures, int kChunk, bool kMap>
__global__ void __launch_bounds__(kChunk * 2, 1) cross_sums_kernel(const __grid_constant__ CrossArguments a) {
  using Memory = CrossSumsMemory<kHead, kFeatures, kChunk, kMap>;
  constexpr int kWarps = kChunk / 16, kInput = Memory::kInput;
  extern __shared__ __align__(128) unsigned char memory[];
  const uint32_t base = shared_address(memory);
  float* const bias = reinterpret_cast<float*>(memory + Memory::kBias);
  const Tile<kHead> weight{base + Memory::kWeight};
  const Shape& shape = a.shape;
  const CrossBlock block(shape, a.plan.source, false);
  const int lane = threadIdx.x & 31, warp = threadIdx.x >> 5, row0 = warp * 16, features = shape.feature_size;
  const bf16* const k = rows_of(a.k, block.batch, block.state_head / (shape.state_heads / shape.key_heads));
  const bf16* const v = rows_of(a.v, block.batch, block.state_head / (shape.state_heads / shape.value_heads));
  const unsigned char* const mask = a.source_mask == nullptr ? nullptr : a.source_mask + int64_t{block.batch} * a.source_length;

  const auto stage_of = [&](int chunk) { return base + ((chunk - block.chunk_begin) & 1) * Memory::kStage; };
  const auto copy_chunk = [&](int chunk) {
    if (chunk < block.chunk_end) {
      const int64_t first = int64_t{chunk} * kChunk;
      const int valid = min(kChunk, a.source_length - static_cast<int>(first));
      const unsigned char* const exists = mask == nullptr ? nullptr : mask + first;
      copy_source_rows_async(Tile<kInput>{stage_of(chunk)}, k + first * a.k.token_stride, a.k.token_stride, exists, row0, valid,
                             kMap ? kHead / 8 : (features + 7) / 8, lane);
      copy_source_rows_async(Tile<kHead>{stage_of(chunk) + Memory::kV}, v + first * a.v.token_stride, a.v.token_stride, exists, row0,
                             valid, kHead / 8, lane);
    }
    commit_copies();
  };

  if constexpr (kMap) load_map<kHead, kFeatures, kChunk * 2>(weight, bias, a, block.state_head);
  copy_chunk(block.chunk_begin);
  copy_chunk(block.chunk_begin + 1);
  SharedProduct<kFeatures, kHead, kWarps> s(warp);
  WeightedColumnSums<kFeatures> z;  // of warp 0
  wait_copies<1>();
  __syncthreads();

  for (int chunk = block.chunk_begin; chunk < block.chunk_end; ++chunk) {
    const Tile<kInput> k_tile{stage_of(chunk)};
    const Tile<kHead> v_tile{stage_of(chunk) + Memory::kV};
    const Tile<kFeatures> phi_k{kMap ? base + Memory::kPhiK : stage_of(chunk)};
    wait_copies<1>();
    __syncwarp();
    if constexpr (kMap) {
      const int first = chunk * kChunk, low = first + row0 + lane / 4, high = low + 8;
      const bool low_exists = low < a.source_length && (mask == nullptr || mask[low] != 0);
      const bool high_exists = high < a.source_length && (mask == nullptr || mask[high] != 0);
      float y[kFeatures / 8][4];
      uint32_t phi[kFeatures / 16][4];
      project<kHead, kFeatures>(y, k_tile, weight, row0, lane);
      activate<kFeatures>(phi, y, bias, 1.0F, low_exists, high_exists, lane);
      store_rows<kFeatures>(phi_k, row0, phi, lane);
    }
    __syncthreads();
    s.template add<kChunk>(phi_k, v_tile, 0, kChunk, lane);
    if (warp == 0) {
      const uint32_t ones = ones_column(lane);
      z.template add<kChunk>(phi_k, 0, kChunk, lane, [ones](int) { return ones; });
    }
    __syncthreads();
    copy_chunk(chunk + 2);
  }
  float* const sums = a.sums + block.part * a.plan.sums_floats;
  write_product<kHead>(sums, s, features, lane);
  if (warp == 0) z.for_each(lane, [&](int feature, float sum) { if (feature < features) sums[features * kHead + feature] = sum; });
}

/// Shared memory of the kernel below, in bytes from its start.
template <int kHead, int kFeatures, int kChunk, bool kMap>
struct CrossQueryMemory {
  static constexpr int kInput = kMap ? kHead : kFeatures;  // columns of q
  static constexpr int kStage = kChunk * kInput * 2;
  static constexpr bool kOwnScratch = kInput < kHead;  // else o leaves through the rows of q
  static constexpr int kWeight = 2 * kStage;
  static constexpr int kScratch = kWeight + (kMap ? kFeatures * kHead * 2 : 0);
  static constexpr int kState = kScratch + (kOwnScratch ? kChunk * kHead * 2 : 0);  // a record: S hi, S lo, z
  static constexpr int kZ = kState + 4 * kFeatures * kHead;
  static constexpr int kBias = kZ + 4 * kFeatures;
  static constexpr int kBytes = kBias + 4 * kFeatures;
};

/// o of some chunks of queries. Every warp walks its own rows: after the state has arrived there is no barrier.
template <int kHead, int kFeatures, int kChunk, bool kMap>
__global__ void __launch_bounds__(kChunk * 2, 1) cross_query_kernel(const __grid_constant__ CrossArguments a) {
  using Memory = CrossQueryMemory<kHead, kFeatures, kChunk, kMap>;
  constexpr int kInput = Memory::kInput, kSteps = kFeatures / 16;
  extern __shared__ __align__(128) unsigned char memory[];
  const uint32_t base = shared_address(memory);
  const float* const z = reinterpret_cast<const float*>(memory + Memory::kZ);
  float* const bias = reinterpret_cast<float*>(memory + Memory::kBias);
  const Tile<kHead> weight{base + Memory::kWeight};
  const Tile<kHead> s_hi{base + Memory::kState}, s_lo{base + Memory::kState + kFeatures * kHead * 2};
  const Shape& shape = a.shape;
  const CrossBlock block(shape, a.plan.queries, true);
  const int lane = threadIdx.x & 31, warp = threadIdx.x >> 5, row0 = warp * 16;
  const bf16* const q = rows_of(a.q, block.batch, block.head);
  bf16* const o = mutable_rows_of(a.o, block.batch, block.head);

  const auto stage_of = [&](int chunk) { return base + ((chunk - block.chunk_begin) & 1) * Memory::kStage; };
  const auto copy_chunk = [&](int chunk) {
    if (chunk < block.chunk_end) {
      const int64_t first = int64_t{chunk} * kChunk;
      const int valid = min(kChunk, shape.length - static_cast<int>(first));
      copy_rows_async(Tile<kInput>{stage_of(chunk)}, q + first * a.q.token_stride, a.q.token_stride, row0, valid,
                      kMap ? kHead / 8 : (shape.feature_size + 7) / 8, lane);
    }
    commit_copies();
  };

  if constexpr (kMap) load_map<kHead, kFeatures, kChunk * 2>(weight, bias, a, block.state_head);
  load_record<kHead, kFeatures, kChunk * 2>(base + Memory::kState, a.state + block.state(shape) * a.plan.record_bytes);
  copy_chunk(block.chunk_begin);
  copy_chunk(block.chunk_begin + 1);
  wait_copies<1>();
  __syncthreads();

  for (int chunk = block.chunk_begin; chunk < block.chunk_end; ++chunk) {
    const Tile<kInput> q_tile{stage_of(chunk)};
    const int64_t first = int64_t{chunk} * kChunk;
    const int valid = min(kChunk, shape.length - static_cast<int>(first));
    wait_copies<1>();
    __syncwarp();
    uint32_t phi[kSteps][4];
    if constexpr (kMap) {
      float y[kFeatures / 8][4];
      project<kHead, kFeatures>(y, q_tile, weight, row0, lane);
      activate<kFeatures>(phi, y, bias, a.rule.scale, true, true, lane);
    } else {
#pragma unroll
      for (int step = 0; step < kSteps; ++step) q_tile.load_a(phi[step], row0, 2 * step, lane);
    }
    float num[kHead / 8][4] = {};
    multiply_split<kSteps, kHead>(num, phi, s_hi, s_lo, lane);
    float n_low = 0.0F, n_high = 0.0F;
#pragma unroll
    for (int n = 0; n < kFeatures / 8; ++n) {
      const float2 z_pair = *reinterpret_cast<const float2*>(z + 8 * n + 2 * (lane & 3));
      const float2 low = unpack(phi[n / 2][2 * (n & 1)]), high = unpack(phi[n / 2][2 * (n & 1) + 1]);
      n_low = fmaf(low.x, z_pair.x, fmaf(low.y, z_pair.y, n_low));
      n_high = fmaf(high.x, z_pair.x, fmaf(high.y, z_pair.y, n_high));
    }
    const Denominator low(row_sum(n_low), a.rule, a.absolute), high(row_sum(n_high), a.rule, a.absolute);
    // This warp's 16 rows as a tile of their own: the rows of q may be wider than those of o.
    const Tile<kHead> scratch{Memory::kOwnScratch ? base + Memory::kScratch + row0 * kHead * 2 : stage_of(chunk) + row0 * kInput * 2};
    __syncwarp();
    stage_rows<kHead>(scratch, 0, num, 1.0F / low.value, 1.0F / high.value, lane);
    write_rows<kHead>(o + first * a.o.token_stride, a.o.token_stride, scratch, 0, row0, valid, kHead / 8, lane);
    copy_chunk(chunk + 2);
  }
}

}  // namespace t2r::kernels::cuda
