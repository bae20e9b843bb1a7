#pragma once

#include "model/kernels/cuda/causal/backward/block.cuh"

namespace t2r::kernels::cuda {

/// What a walk adds up, in registers of all warps: dS and dz, of what lies behind the chunk, and
/// the map's dW and d b. dz, d b of the queries and d b of the keys are in one warp each.
template <class Block>
class BackwardSums {
 public:
  __device__ __forceinline__ explicit BackwardSums(const Block& owner)
      : block(owner), ds(owner.warp), dw(owner.warp) {}

  /// From later segments, or from the gradient of the final state.
  __device__ __forceinline__ void start() {
    const CausalArguments& a = block.a;
    if (a.plan.segments > 1) {
      const float* const part =
          a.sums + (int64_t{block.item} * a.plan.segments + block.segment) * a.plan.sums_floats;
      add_state(part, part + block.features * kHead);
    } else if (a.grad_final_s != nullptr && block.head % block.group == 0) {
      const int64_t state = int64_t{block.batch} * block.shape.state_heads + block.state_head;
      add_state(a.grad_final_s + state * block.features * kHead,
                a.grad_final_z + state * block.features);
    }
  }

  /// Hands dS and dz to the columns.
  __device__ __forceinline__ void publish_state() {
    if constexpr (Block::kColumnPart) {
      ds.store_split(block.ds_hi, block.ds_lo, block.lane);
      if (block.warp == kDzWarp)
        sums.for_each(block.lane, [&](int feature, float sum) { block.dz_shared[feature] = sum; });
    }
  }

  /// Adds a chunk's.
  __device__ __forceinline__ void add(const BackwardChunk& chunk) {
    const int lane = block.lane;
    int carried = kChunk;  // rows before it see before the chunk
    if (block.starts != nullptr) {
      carried =
          __syncthreads_count(block.tid < chunk.valid && block.starts[chunk.first + block.tid] <
                                                             chunk.first);  // a prefix of the rows
      if (chunk.last_start >= 0) {
        ds.clear();
        if (block.warp == kDzWarp) sums.clear();
      }
    }
    ds.template add<kChunk>(block.scaled_phi_q, block.grad_o_of(chunk), 0, carried, lane);
    if (block.warp == kDzWarp) {
      sums.template add<kChunk>(block.scaled_phi_q, 0, carried, lane, [&](int row) {
        if (lane >= 8) return 0u;
        uint32_t hi, lo;
        split(block.e_shared[row], block.e_shared[row + 1], hi, lo);
        return lane < 4 ? hi : lo;
      });
    }
    if constexpr (Block::kHasMap) add_to_map(chunk);
  }

  /// Epilogue. Parts of d W and d b: [item][segment][queries' and keys' launch] when there are two
  /// launches.
  template <BackwardPart kPart>
  __device__ __forceinline__ void write() {
    const CausalArguments& a = block.a;
    const int features = block.features;
    if constexpr (kPart == BackwardPart::kRows) {
      float* const part =
          a.sums + (int64_t{block.item} * a.plan.segments + block.segment) * a.plan.sums_floats;
      write_state(part, part + features * kHead);
    } else if (a.grad_initial_s != nullptr && block.segment == 0) {
      write_state(a.grad_initial_s + int64_t{block.item} * features * kHead,
                  a.grad_initial_z + int64_t{block.item} * features);
    }
    if constexpr (Block::kHasMap) {
      constexpr int kLaunches = kPart == BackwardPart::kAll ? 1 : 2,
                    kLaunch = kPart == BackwardPart::kColumns ? 1 : 0;
      write_map(a.grad_weight +
                ((int64_t{block.item} * a.plan.segments + block.segment) * kLaunches + kLaunch) *
                    (kHead + 2) * features);
    }
  }

 private:
  static constexpr int kWarps = Block::kWarps, kChunk = 16 * kWarps, kFeatures = 16 * Block::kSteps,
                       kHead = 16 * Block::kHeadSteps;
  static constexpr int kDzWarp = 0, kDbQWarp = 1 % kWarps, kDbKWarp = 2 % kWarps;

  __device__ __forceinline__ void add_state(const float* from_s, const float* from_z) {
    const int features = block.features, lane = block.lane;
    ds.for_each_pair(lane, [&](int row, int column, float* pair) {
      if (row >= features) return;
      pair[0] += from_s[row * kHead + column];
      pair[1] += from_s[row * kHead + column + 1];
    });
    if (block.warp == kDzWarp && (lane & 3) == 0) {
#pragma unroll
      for (int m = 0; m < kFeatures / 16; ++m) {
        const int feature = m * 16 + lane / 4;
        if (feature < features) sums.value[m][0] += from_z[feature];
        if (feature + 8 < features) sums.value[m][2] += from_z[feature + 8];
      }
    }
  }

  __device__ __forceinline__ void add_to_map(const BackwardChunk& chunk) {
    const int lane = block.lane;
    const uint32_t ones = ones_column(lane);
    if constexpr (Block::kRowPart) {
      dw.template add<kChunk>(block.grad_y_q, block.q_of(chunk), 0, kChunk, lane);
      if (block.warp == kDbQWarp)
        sums.template add<kChunk>(block.grad_y_q, 0, kChunk, lane, [ones](int) { return ones; });
    }
    if constexpr (Block::kColumnPart) {
      dw.template add<kChunk>(block.grad_y_k, block.k_of(chunk), 0, kChunk, lane);
      if (block.warp == kDbKWarp)
        sums.template add<kChunk>(block.grad_y_k, 0, kChunk, lane, [ones](int) { return ones; });
    }
  }

  __device__ __forceinline__ void write_matrix(SharedProduct<kFeatures, kHead, kWarps>& from,
                                               float* to) {
    from.for_each_pair(block.lane, [&](int row, int column, const float* pair) {
      if (row < block.features)
        *reinterpret_cast<float2*>(to + row * kHead + column) = {pair[0], pair[1]};
    });
  }
  __device__ __forceinline__ void write_state(float* to_s, float* to_z) {
    write_matrix(ds, to_s);
    if (block.warp == kDzWarp)
      sums.for_each(block.lane, [&](int feature, float sum) {
        if (feature < block.features) to_z[feature] = sum;
      });
  }
  __device__ __forceinline__ void write_map(float* part) {
    const int features = block.features;
    write_matrix(dw, part);
    float* const db = part + features * kHead;  // [queries, keys][features]
    if (block.warp == kDbQWarp) {
      const float unscale = 1.0F / block.a.rule.scale;
      sums.for_each(block.lane, [&](int feature, float sum) {
        if (feature < features) db[feature] = Block::kRowPart ? sum * unscale : 0.0F;
      });
    }
    if (block.warp == kDbKWarp) {
      sums.for_each(block.lane, [&](int feature, float sum) {
        if (feature < features) db[features + feature] = Block::kColumnPart ? sum : 0.0F;
      });
    }
  }

  const Block& block;
  SharedProduct<kFeatures, kHead, kWarps> ds, dw;
  WeightedColumnSums<kFeatures> sums;
};

}  // namespace t2r::kernels::cuda
