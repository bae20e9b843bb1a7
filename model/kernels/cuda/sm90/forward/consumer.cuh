#pragma once

#include "model/kernels/cuda/sm90/forward/block.cuh"

namespace t2r::kernels::cuda::sm90 {

/// Consumer: a warpgroup that computes every kWalkers-th chunk. S and z are in the accumulators'
/// layout, transposed: rows are columns of v, columns features.
template <int kFeatures, bool kMap, bool kSumsOnly>
class ForwardConsumer {
 public:
  using Block = ForwardBlock<kFeatures, kMap, kSumsOnly>;
  __device__ __forceinline__ explicit ForwardConsumer(const Block& owner)
      : block(owner),
        relay(owner.memory + Memory::kRelay, owner.base + Memory::kPassed, owner.walker, owner.tid),
        masks(/*not_after=*/true, owner.warp & 3, owner.lane) {}

  __device__ __forceinline__ void run() const {
    const CausalArguments& a = block.a;
    wait_for_earlier_kernels();
    if (kMap && block.warp == 0) {
      load_bias<kFeatures, 32>(block.bias, a.bias, block.state_head, block.features);
      arrive(block.base + Memory::kMapReady, block.lane);
    }
    State all;  // the sums alone: of all own chunks
    if (!kSumsOnly && block.walker == 0) {
      const StartState from = start_state<kHead>(
          a, a.initial_s, a.initial_z, block.item, block.segment, block.batch, block.state_head);
      relay.start(from.s, from.z, block.low, block.features);
    }
    if constexpr (kMap) wait_barrier(block.base + Memory::kMapReady, 0);
    for (int turn = block.walker; turn < block.turns; turn += kWalkers<kFeatures>) {
      wait_barrier(block.loaded(turn), block.parity(turn));
      run_turn(turn, all);
      make_visible_to_wgmma();
      arrive(block.done(turn), block.lane);
    }
    sync_walkers<kFeatures>();
    if constexpr (kSumsOnly) {
      join_sums(all);
    } else {
      write_final_state(all);
    }
  }

 private:
  using Memory = typename Block::Memory;
  using Features = uint32_t[kFeatures / 16][4];
  static constexpr int kSteps = kFeatures / 16, kHeadSteps = kHead / 16;

  struct State {
    float s[kFeatures / 8][4] = {}, z[kFeatures / 8][2] = {};
  };
  struct ChunkSums {
    float s[kFeatures / 8][4], z[kFeatures / 8][4];
  };

  __device__ __forceinline__ Tile<kFeatures> phi_k_of(int turn) const {
    return {kMap ? block.base + Memory::kPhiK + block.walker * Memory::kPhiTile
                 : block.base + block.stage_of(turn) + Memory::kK};
  }
  __device__ __forceinline__ Tile<kHead> v_of(int turn) const {
    return {block.base + block.stage_of(turn) + Memory::kV};
  }

  __device__ __forceinline__ void run_turn(int turn, State& all) const {
    Features phi_q;
    make_features(turn, phi_q);
    ChunkSums sums;
    start_sums(turn, sums);
    if constexpr (kSumsOnly) {
      wait_products<0>();
      settle(sums.s);
      settle(sums.z);
#pragma unroll
      for (int n = 0; n < kFeatures / 8; ++n)
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          all.s[n][i] += sums.s[n][i];
          if (i < 2) all.z[n][i] += sums.z[n][i];
        }
      if constexpr (kMap) sync_warpgroup(1 + block.walker);  // phi(k) may be overwritten
    } else {
      float p[8][4], num[8][4];
#pragma unroll
      for (int step = 0; step < kSteps; ++step)
        product<Major::kK>(p, phi_q[step], operand<Major::kK>(phi_k_of(turn), 0, step), step > 0);
      commit_products();
      State before;
      pass_state(turn, sums, before);
      OfRows of_before = dots_before(phi_q, before);
      store_centred(turn, before);
      make_visible_to_wgmma();
      wait_products<0>();
      settle(p);
      sync_warpgroup(1 + block.walker);  // the state; and phi(k) may be overwritten
      write_outputs(turn, phi_q, p, num, of_before);
    }
  }

  /// Features of the chunk: of the keys to shared memory, of the queries to registers.
  __device__ __forceinline__ void make_features(int turn, Features& phi_q) const {
    const uint32_t stage = block.base + block.stage_of(turn);
    const int lane = block.lane;
    if constexpr (kMap) {
      const int valid = min(kWalkTokens, block.shape.length - block.token_of(turn));
      const Tile<kHead> q_tile{stage + Memory::kQ}, k_tile{stage + Memory::kK};
      float y_k[kFeatures / 8][4], y_q[kFeatures / 8][4];
      begin_products();
#pragma unroll
      for (int step = 0; step < kHeadSteps; ++step)
        product<Major::kK, Major::kK>(y_k,
                                      operand<Major::kK>(k_tile, 0, step),
                                      operand<Major::kK>(block.weight, 0, step),
                                      step > 0);
      commit_products();
      if constexpr (!kSumsOnly) {
#pragma unroll
        for (int step = 0; step < kHeadSteps; ++step)
          product<Major::kK, Major::kK>(y_q,
                                        operand<Major::kK>(q_tile, 0, step),
                                        operand<Major::kK>(block.weight, 0, step),
                                        step > 0);
      }
      commit_products();
      wait_products<1>();
      settle(y_k);
      Features own_phi_k;
      activate<kFeatures>(
          own_phi_k, y_k, block.bias, 1.0F, block.low < valid, block.high < valid, lane);
      store_rows<kFeatures>(phi_k_of(turn), block.row0, own_phi_k, lane);
      make_visible_to_wgmma();
      wait_products<0>();
      if constexpr (!kSumsOnly) {
        settle(y_q);
        activate<kFeatures>(phi_q, y_q, block.bias, block.a.rule.scale, true, true, lane);
      }
      sync_warpgroup(1 + block.walker);
    } else if constexpr (!kSumsOnly) {
#pragma unroll
      for (int step = 0; step < kSteps; ++step)
        Tile<kFeatures>{stage + Memory::kQ}.load_a(phi_q[step], block.row0, 2 * step, lane);
    }
  }

  /// Starts the chunk's sums of v^T phi(k) and, in every row, of phi(k).
  __device__ __forceinline__ void start_sums(int turn, ChunkSums& sums) const {
    constexpr uint32_t kOnes = 0x3f803f80u;
    const uint32_t ones[4] = {kOnes, kOnes, kOnes, kOnes};
    begin_products();
#pragma unroll
    for (int step = 0; step < kWalkTokens / 16; ++step) {
      product<Major::kMN, Major::kMN>(sums.s,
                                      operand<Major::kMN>(v_of(turn), 0, step),
                                      operand<Major::kMN>(phi_k_of(turn), 0, step),
                                      step > 0);
      product<Major::kMN>(sums.z, ones, operand<Major::kMN>(phi_k_of(turn), 0, step), step > 0);
    }
    commit_products();
  }

  /// Takes the state before the chunk, adds the chunk's sums and hands it on: all that has to
  /// happen one chunk after the other.
  __device__ __forceinline__ void pass_state(int turn, ChunkSums& sums, State& before) const {
    relay.take(turn, before.s, before.z);
    wait_products<1>();
    settle(sums.s);
    settle(sums.z);
#pragma unroll
    for (int n = 0; n < kFeatures / 8; ++n)
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        sums.s[n][i] += before.s[n][i];
        sums.z[n][i] += before.z[n][i & 1];
      }
    relay.give(sums.s, sums.z);
  }

  /// This lane's share of phi(q) . z before the chunk.
  __device__ __forceinline__ static OfRows dots_before(const Features& phi_q, const State& before) {
    OfRows dots;
#pragma unroll
    for (int n = 0; n < kFeatures / 8; ++n) {
      const float2 phi_low = unpack(phi_q[n / 2][2 * (n & 1)]),
                   phi_high = unpack(phi_q[n / 2][2 * (n & 1) + 1]);
      dots.low = fmaf(phi_low.x, before.z[n][0], fmaf(phi_low.y, before.z[n][1], dots.low));
      dots.high = fmaf(phi_high.x, before.z[n][0], fmaf(phi_high.y, before.z[n][1], dots.high));
    }
    return dots;
  }

  /// The state before the chunk as S - z m^T, z and m, m the values' mean so far: what the rounding
  /// of S - z m^T loses is as large as the values' spread, not as their mean. For this walker's
  /// products and, as a record, for the backward pass.
  __device__ __forceinline__ void store_centred(int turn, const State& before) const {
    const int lane = block.lane;
    float sum_low = 0.0F, sum_high = 0.0F, sum_z = 0.0F;
#pragma unroll
    for (int n = 0; n < kFeatures / 8; ++n)
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        const bool minus = !kMap && before.z[n][i] < 0.0F;  // given features may have any sign
        sum_low += minus ? -before.s[n][i] : before.s[n][i];
        sum_high += minus ? -before.s[n][i + 2] : before.s[n][i + 2];
        sum_z += minus ? -before.z[n][i] : before.z[n][i];
      }
    sum_z = row_sum(sum_z);
    const float inverse = sum_z > 0.0F ? 1.0F / sum_z : 0.0F;
    uint32_t mean_hi, mean_lo;  // of the rows `low` and `high`
    split(row_sum(sum_low) * inverse, row_sum(sum_high) * inverse, mean_hi, mean_lo);
    const float2 of_hi = unpack(mean_hi), of_lo = unpack(mean_lo);
    const float mean_low = of_hi.x + of_lo.x,
                mean_high = of_hi.y + of_lo.y;  // what the halves hold, and so what is taken from S
    const Tile<kFeatures> centred{block.base + block.stage_of(turn) + Memory::kRecord};
    float* const z_shared = z_of(turn);
#pragma unroll
    for (int step = 0; step < kSteps; ++step) {
      uint32_t packed[4];
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const int n = 2 * step + i / 2, j = 2 * (i & 1);
        const float mean = (i & 1) == 0 ? mean_low : mean_high;
        packed[i] = pack(fmaf(-mean, before.z[n][0], before.s[n][j]),
                         fmaf(-mean, before.z[n][1], before.s[n][j + 1]));
      }
      centred.store_a(packed, block.row0, 2 * step, lane);
    }
    if ((block.warp & 3) == 0 && lane < 4) {
#pragma unroll
      for (int n = 0; n < kFeatures / 8; ++n)
        reinterpret_cast<float2*>(z_shared)[n * 4 + lane] = {before.z[n][0], before.z[n][1]};
    }
    if ((lane & 3) == 0) {
      float* const mean_shared = mean_of(turn);
      mean_shared[block.low] = mean_low;
      mean_shared[block.high] = mean_high;
      const Tile<kHead> halves{centred.base + 2 * kFeatures * kHead};
      const auto store_half = [&](int row, int column, uint32_t pair) {
        *reinterpret_cast<uint16_t*>(block.memory + (halves.at(row, column / 8) - block.base) +
                                     column % 8 * 2) = static_cast<uint16_t>(pair);
      };
      store_half(0, block.low, mean_hi);
      store_half(1, block.low, mean_lo);
      store_half(0, block.high, mean_hi >> 16);
      store_half(1, block.high, mean_lo >> 16);
    }
  }
  __device__ __forceinline__ float* z_of(int turn) const {
    return reinterpret_cast<float*>(block.memory + block.stage_of(turn) + Memory::kRecord +
                                    kRecordZ<kHead, kFeatures>);
  }
  /// Behind the record, for this kernel.
  __device__ __forceinline__ float* mean_of(int turn) const {
    return z_of(turn) + kFeatures;
  }

  /// o = (phi(q) (S - z m^T) + (phi(q) . z) m + p v) / denominator, to q's place.
  __device__ __forceinline__ void write_outputs(
      int turn, const Features& phi_q, float (&p)[8][4], float (&num)[8][4], OfRows before) const {
    const int lane = block.lane;
    const Rule& rule = block.a.rule;
    const uint32_t stage = block.base + block.stage_of(turn);
    const Tile<kFeatures> centred{stage + Memory::kRecord};
    begin_products();
#pragma unroll
    for (int step = 0; step < kSteps; ++step)
      product<Major::kK>(num, phi_q[step], operand<Major::kK>(centred, 0, step), step > 0);
    commit_products();
    float den[4] = {};
    uint32_t weights[4][4];
#pragma unroll
    for (int n = 0; n < 8; ++n) {
      weights[n / 2][2 * (n & 1)] = pack(p[n][0], p[n][1]);
      weights[n / 2][2 * (n & 1) + 1] = pack(p[n][2], p[n][3]);
#pragma unroll
      for (int i = 0; i < 4; ++i)
        if (is_seen(n, i, block.low, lane)) den[i] += p[n][i];
    }
    masks.clear(weights);
    begin_products();
#pragma unroll
    for (int step = 0; step < 4; ++step)
      product<Major::kMN>(num, weights[step], operand<Major::kMN>(v_of(turn), 0, step), true);
    commit_products();
    before.low = row_sum(before.low);
    before.high = row_sum(before.high);
    const float scale_low =
        1.0F / fmaxf(row_sum(den[0] + den[1]) + before.low + rule.added, rule.floor);
    const float scale_high =
        1.0F / fmaxf(row_sum(den[2] + den[3]) + before.high + rule.added, rule.floor);
    wait_products<0>();
    settle(num);
    const float* const mean_shared = mean_of(turn);
#pragma unroll
    for (int n = 0; n < 8; ++n) {  // what the state's centring has left out
      const float2 mean = *reinterpret_cast<const float2*>(mean_shared + 8 * n + 2 * (lane & 3));
      num[n][0] = fmaf(before.low, mean.x, num[n][0]);
      num[n][1] = fmaf(before.low, mean.y, num[n][1]);
      num[n][2] = fmaf(before.high, mean.x, num[n][2]);
      num[n][3] = fmaf(before.high, mean.y, num[n][3]);
    }
    stage_rows<kHead>(
        Tile<kHead>{stage + Memory::kQ}, block.row0, num, scale_low, scale_high, lane);
  }

  /// Epilogue of the sums alone: the walkers' sums, in their order.
  __device__ __forceinline__ void join_sums(State& all) const {
    const CausalArguments& a = block.a;
    const auto of_walker = [&](int i) {
      return reinterpret_cast<float*>(block.memory + i * 2 * Relay<kFeatures>::kMatrixBytes) +
             (block.tid & 127);
    };
    if (block.walker > 0) {
#pragma unroll
      for (int n = 0; n < kFeatures / 8; ++n)
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          of_walker(block.walker)[(4 * n + i) * 128] = all.s[n][i];
          if (i < 2) of_walker(block.walker)[(kFeatures / 2 + 2 * n + i) * 128] = all.z[n][i];
        }
    }
    sync_walkers<kFeatures>();
    if (block.walker == 0) {
#pragma unroll
      for (int other = 1; other < kWalkers<kFeatures>; ++other)
#pragma unroll
        for (int n = 0; n < kFeatures / 8; ++n)
#pragma unroll
          for (int i = 0; i < 4; ++i) {
            all.s[n][i] += of_walker(other)[(4 * n + i) * 128];
            if (i < 2) all.z[n][i] += of_walker(other)[(kFeatures / 2 + 2 * n + i) * 128];
          }
      float* const sums =
          a.sums + (int64_t{block.item} * a.plan.segments + block.segment) * a.plan.sums_floats;
      write(all, sums, sums + block.features * kHead);
    }
  }

  /// Epilogue: the state behind the last token.
  __device__ __forceinline__ void write_final_state(State& all) const {
    const CausalArguments& a = block.a;
    const Shape& shape = block.shape;
    if (block.walker == 0 && a.final_s != nullptr && block.segment + 1 == a.plan.segments &&
        block.head % (shape.query_heads / shape.state_heads) == 0) {
      relay.read(all.s, all.z);
      const int64_t state = int64_t{block.batch} * shape.state_heads + block.state_head;
      write(all, a.final_s + state * block.features * kHead, a.final_z + state * block.features);
    }
  }
  __device__ __forceinline__ void write(const State& all, float* to_s, float* to_z) const {
    write_state<kFeatures>(all.s, all.z, to_s, to_z, block.low, block.features, block.lane);
  }

  const Block& block;
  const Relay<kFeatures> relay;
  const PairMasks masks;
};

}  // namespace t2r::kernels::cuda::sm90
