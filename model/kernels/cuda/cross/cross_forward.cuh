#pragma once

#include "model/kernels/cuda/cross/cross_common.cuh"

namespace t2r::kernels::cuda {

/// Shared memory in bytes from its start. A stage has k and v, or q and room for o.
template <int kHead, int kFeatures, bool kMap>
struct CrossForwardMemory {
  static constexpr int kInput = kMap ? kHead : kFeatures;  // columns of q and k
  static constexpr int kV = kCrossRows * kInput * 2;
  static constexpr int kStage = kV + kCrossRows * kHead * 2;
  static constexpr int kWeight = 2 * kStage;
  static constexpr int kState = kWeight + (kMap ? kFeatures * kHead * 2 : 0);
  static constexpr int kBias = kState + SharedState<kHead, kFeatures>::kRecordBytes;
  static constexpr int kPhiK = kBias + 4 * kFeatures;
  static constexpr int kBytes = kPhiK + (kMap ? kCrossRows * kFeatures * 2 : 0);
  static constexpr int kShare = kPhiK;  // of a cluster's sums: the features have served
  static constexpr int kClusterBytes =
      max_of(kBytes, kShare + SharedState<kHead, kFeatures>::kShareBytes);
  static constexpr int kBlocks = blocks_with(kClusterBytes);
};

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

/// phi(q) . z for the two rows of a lane, in all four lanes that share them.
template <int kFeatures>
__device__ __forceinline__ float2 inner_with_z(const uint32_t (&phi)[kFeatures / 16][4],
                                               const float* z,
                                               int lane) {
  float low = 0.0F, high = 0.0F;
#pragma unroll
  for (int n = 0; n < kFeatures / 8; ++n) {
    const float2 z_pair = *reinterpret_cast<const float2*>(z + 8 * n + 2 * (lane & 3));
    const float2 phi_low = unpack(phi[n / 2][2 * (n & 1)]),
                 phi_high = unpack(phi[n / 2][2 * (n & 1) + 1]);
    low = fmaf(phi_low.x, z_pair.x, fmaf(phi_low.y, z_pair.y, low));
    high = fmaf(phi_high.x, z_pair.x, fmaf(phi_high.y, z_pair.y, high));
  }
  return {row_sum(low), row_sum(high)};
}

/// A block's chunks of the source: S and z. Then o of its chunks of queries, where every warp walks
/// its own rows. Per chunk of the source: features of the own rows | barrier | S += phi(k)^T v, z |
/// barrier.
template <int kHead, int kFeatures, bool kMap>
__global__ void __launch_bounds__(kCrossThreads,
                                  (CrossForwardMemory<kHead, kFeatures, kMap>::kBlocks))
    cross_forward_kernel(const __grid_constant__ CrossArguments a, CrossPart part) {
  using Memory = CrossForwardMemory<kHead, kFeatures, kMap>;
  constexpr int kInput = Memory::kInput, kSteps = kFeatures / 16;
  extern __shared__ __align__(128) unsigned char memory[];
  const uint32_t base = shared_address(memory);
  float* const bias = reinterpret_cast<float*>(memory + Memory::kBias);
  const Tile<kHead> weight{base + Memory::kWeight};
  const SharedState<kHead, kFeatures> state(memory, Memory::kState, Memory::kShare);
  const Shape& shape = a.shape;
  const CrossBlock block(a, part);
  const int lane = threadIdx.x & 31, warp = threadIdx.x >> 5, row0 = warp * 16,
            features = shape.feature_size;
  const int group = shape.query_heads / shape.state_heads,
            input_units = kMap ? kHead / 8 : (features + 7) / 8;
  const int key_head = block.head / (shape.state_heads / shape.key_heads),
            value_head = block.head / (shape.state_heads / shape.value_heads);
  const auto mask_of = [&](int batch) {
    return a.source_mask == nullptr ? nullptr : a.source_mask + int64_t{batch} * a.source_length;
  };
  const auto stage_of = [&](int step) { return base + (step & 1) * Memory::kStage; };
  wait_for_earlier_kernels();

  CrossCursor cursor(block, true, group, false);
  int copied = 0;
  const auto copy_next = [&] {
    const uint32_t stage = stage_of(copied++);
    cursor.next(
        [&](int batch, int index) {
          const int first = (block.source_begin + index) * kCrossRows,
                    valid = min(kCrossRows, a.source_length - first);
          const unsigned char* const mask =
              mask_of(batch) == nullptr ? nullptr : mask_of(batch) + first;
          copy_chunk_rows(Tile<kInput>{stage},
                          rows_of(a.k, batch, key_head) + first * a.k.token_stride,
                          a.k.token_stride,
                          mask,
                          row0,
                          valid,
                          input_units,
                          lane);
          copy_chunk_rows(Tile<kHead>{stage + Memory::kV},
                          rows_of(a.v, batch, value_head) + first * a.v.token_stride,
                          a.v.token_stride,
                          mask,
                          row0,
                          valid,
                          kHead / 8,
                          lane);
        },
        [&](int batch, int member, int index) {
          const int first = (block.query_begin + index) * kCrossRows,
                    valid = min(kCrossRows, shape.length - first);
          copy_chunk_rows(
              Tile<kInput>{stage},
              rows_of(a.q, batch, block.head * group + member) + first * a.q.token_stride,
              a.q.token_stride,
              nullptr,
              row0,
              valid,
              input_units,
              lane);
        });
    commit_copies();
  };
  if constexpr (kMap) {
    copy_weight_async<kHead, kFeatures, kCrossThreads>(
        [&](int row, int unit) { return weight.at(row, unit); }, a.weight, block.head, features);
    load_bias<kFeatures, kCrossThreads>(bias, a.bias, block.head, features);
  }
  const auto record_of = [&](int batch) {
    return a.state + (int64_t{batch} * shape.state_heads + block.head) * a.plan.record_bytes;
  };
  if (part == CrossPart::kQueries)
    state.load(record_of(block.batch));  // and the block has no other sequence
#pragma unroll 1
  for (int i = 0; i < 2; ++i) copy_next();
  wait_copies<1>();
  __syncthreads();

  int step = 0;
  for (int batch = block.batch; batch < block.batch_end; ++batch) {
    if (part != CrossPart::kQueries) {
      SharedProduct<kFeatures, kHead, kCrossWarps> s(warp);
      WeightedColumnSums<kFeatures> z;  // of warp 0
      for (int chunk = block.source_begin; chunk < block.source_end; ++chunk, ++step) {
        const uint32_t stage = stage_of(step);
        wait_copies<1>();
        __syncwarp();
        sum_source_chunk<kHead, kFeatures, kMap>(
            s,
            z,
            Tile<kInput>{stage},
            Tile<kHead>{stage + Memory::kV},
            Tile<kFeatures>{kMap ? base + Memory::kPhiK : stage},
            weight,
            bias,
            mask_of(batch),
            chunk * kCrossRows,
            a.source_length,
            row0,
            lane);
        __syncthreads();
        copy_next();
      }
      if (part == CrossPart::kSource) {
        write_share<kHead>(
            a.sums + block.part * a.plan.sums_floats, s, z, warp == 0, features, lane);
        return;
      }
      state.add_up(s, z, block.segments, block.rank);
      if (a.state != nullptr && block.rank == 0) state.save(record_of(batch));
    }
    for (int member = 0; member < group; ++member) {
      bf16* const o = mutable_rows_of(a.o, batch, block.head * group + member);
      for (int chunk = block.query_begin; chunk < block.query_end; ++chunk, ++step) {
        const Tile<kInput> q_tile{stage_of(step)};
        const Tile<kHead> scratch{stage_of(step) + Memory::kV};
        const int64_t first = int64_t{chunk} * kCrossRows;
        const int valid = min(kCrossRows, shape.length - static_cast<int>(first));
        wait_copies<1>();
        __syncwarp();
        if (row0 < valid) {
          uint32_t phi[kSteps][4];
          if constexpr (kMap) {
            float y[kFeatures / 8][4];
            project<kHead, kFeatures>(y, q_tile, weight, row0, lane);
            activate<kFeatures>(phi, y, bias, a.rule.scale, true, true, lane);
          } else {
#pragma unroll
            for (int i = 0; i < kSteps; ++i) q_tile.load_a(phi[i], row0, 2 * i, lane);
          }
          float num[kHead / 8][4] = {};
          multiply_split<kSteps, kHead>(num, phi, state.hi(), state.lo(), lane);
          const float2 n = inner_with_z<kFeatures>(phi, state.z, lane);
          const Denominator low(n.x, a.rule, a.absolute), high(n.y, a.rule, a.absolute);
          stage_rows<kHead>(scratch, row0, num, 1.0F / low.value, 1.0F / high.value, lane);
          write_rows<kHead>(o + first * a.o.token_stride,
                            a.o.token_stride,
                            scratch,
                            row0,
                            row0,
                            valid,
                            kHead / 8,
                            lane);
        }
        copy_next();
      }
    }
  }
}

}  // namespace t2r::kernels::cuda
