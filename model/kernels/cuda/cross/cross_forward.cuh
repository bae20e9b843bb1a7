#pragma once

#include "model/kernels/cuda/cross/cross_walk.cuh"

namespace t2r::kernels::cuda {

/// Shared memory in bytes from its start. A stage has k and v, or q and room for o.
template <int kHead, int kFeatures, bool kMap>
struct CrossForwardMemory {
  static constexpr int kInput = kMap ? kHead : kFeatures;  // columns of q and k
  static constexpr bool kHasGradO = false;
  static constexpr int kSecond = kCrossRows * kInput * 2;
  static constexpr int kStage = kSecond + kCrossRows * kHead * 2;
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

/// A block of threads of cross_forward_kernel.
///
/// Barriers, per chunk of the source: features of the own rows are in shared memory | S and z have
/// them. Of the queries every warp walks its own rows.
template <int kHead, int kFeatures, bool kMap>
class CrossForward : CrossWalk<kHead, kFeatures, kMap, CrossForwardMemory<kHead, kFeatures, kMap>> {
  using Walk = CrossWalk<kHead, kFeatures, kMap, CrossForwardMemory<kHead, kFeatures, kMap>>;
  using typename Walk::Features, typename Walk::Memory, typename Walk::Product;
  using Walk::a, Walk::part, Walk::base, Walk::bias, Walk::weight, Walk::shape, Walk::block,
      Walk::state, Walk::lane, Walk::warp, Walk::row0, Walk::features, Walk::group, Walk::step;
  using Walk::kInput, Walk::kSteps;

 public:
  __device__ __forceinline__ CrossForward(const CrossArguments& arguments,
                                          CrossPart launch,
                                          unsigned char* shared)
      : Walk(arguments, launch, shared, /*sums_first=*/true, /*sources_last=*/false) {}

  __device__ __forceinline__ void run() {
    this->load_map();
    if (part == CrossPart::kQueries)
      state.load(record_of(block.batch));  // and the block has no other sequence
#pragma unroll 1
    for (int i = 0; i < 2; ++i) this->copy_next();
    wait_copies<1>();
    __syncthreads();
    for (int batch = block.batch; batch < block.batch_end; ++batch) {
      if (part != CrossPart::kQueries) {
        Product s(warp);
        WeightedColumnSums<kFeatures> z;  // of warp 0
        this->sum_source(s, z, batch, base + Memory::kPhiK);
        if (part == CrossPart::kSource) {
          write_share<kHead>(
              a.sums + block.part * a.plan.sums_floats, s, z, warp == 0, features, lane);
          return;
        }
        state.add_up(s, z, block.segments, block.rank);
        if (a.state != nullptr && block.rank == 0) state.save(record_of(batch));
      }
      for (int member = 0; member < group; ++member) run_queries(batch, member);
    }
  }

 private:
  __device__ __forceinline__ unsigned char* record_of(int batch) const {
    return a.state + (int64_t{batch} * shape.state_heads + block.head) * a.plan.record_bytes;
  }

  /// o of the block's chunks of one head's queries.
  __device__ __forceinline__ void run_queries(int batch, int member) {
    bf16* const o = mutable_rows_of(a.o, batch, block.head * group + member);
    for (int chunk = block.query_begin; chunk < block.query_end; ++chunk, ++step) {
      const int64_t first = int64_t{chunk} * kCrossRows;
      const int valid = min(kCrossRows, shape.length - static_cast<int>(first));
      wait_copies<1>();
      __syncwarp();
      if (row0 < valid) write_outputs(o + first * a.o.token_stride, valid);
      this->copy_next();
    }
  }

  __device__ __forceinline__ void write_outputs(bf16* o, int valid) const {
    const Tile<kInput> q_tile{this->stage_of(step)};
    const Tile<kHead> scratch{this->stage_of(step) + Memory::kSecond};
    Features phi;
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
    write_rows<kHead>(o, a.o.token_stride, scratch, row0, row0, valid, kHead / 8, lane);
  }
};

/// A block's chunks of the source: S and z. Then o of its chunks of queries.
template <int kHead, int kFeatures, bool kMap>
__global__ void __launch_bounds__(kCrossThreads,
                                  (CrossForwardMemory<kHead, kFeatures, kMap>::kBlocks))
    cross_forward_kernel(const __grid_constant__ CrossArguments a, CrossPart part) {
  extern __shared__ __align__(128) unsigned char memory[];
  wait_for_earlier_kernels();
  CrossForward<kHead, kFeatures, kMap>(a, part, memory).run();
}

}  // namespace t2r::kernels::cuda
