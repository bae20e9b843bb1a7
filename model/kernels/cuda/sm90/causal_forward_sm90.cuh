#pragma once

#include "model/kernels/cuda/sm90/causal_relay_sm90.cuh"
#include "model/kernels/cuda/sm90/causal_rows_sm90.cuh"

namespace t2r::kernels::cuda::sm90 {

/// Shared memory of the forward kernel; tiles begin at multiples of 1,024 bytes, where the
/// swizzle's pattern does.
template <int kFeatures, bool kMap>
struct ForwardMemory {
  static constexpr int kInputTile = kWalkTokens * (kMap ? kHead : kFeatures) * 2,
                       kTile = kWalkTokens * kHead * 2;
  static constexpr int kQ = 0;  // later o
  static constexpr int kK = kQ + kTile;
  static constexpr int kV = kK + kInputTile;
  static constexpr int kRecord = kV + kTile;  // the state before the chunk
  static constexpr int kStage =
      kRecord + round_up(kRecordBytes<kHead, kFeatures> + 4 * kHead, 1024);
  static constexpr int kPhiTile = kMap ? kWalkTokens * kFeatures * 2 : 0;
  // A multiple of the walkers: a stage is always the same walker's, so none can be a round ahead of
  // its barriers.
  static constexpr int kStages = 2 * kWalkers<kFeatures>;
  static constexpr int kWeight = kStages * kStage;
  static constexpr int kPhiK = kWeight + (kMap ? kFeatures * kHead * 2 : 0);  // of each walker
  static constexpr int kRelay = kPhiK + kWalkers<kFeatures> * kPhiTile;
  static constexpr int kBias = kRelay + Relay<kFeatures>::kBytes;
  static constexpr int kLoaded =
      kBias + 4 * kFeatures;  // barriers: of every stage, twice; of the relay
  static constexpr int kDone = kLoaded + 8 * kStages;
  static constexpr int kPassed = kDone + 8 * kStages;
  static constexpr int kMapReady = kPassed + 8 * Relay<kFeatures>::kBarriers;  // W and b
  static constexpr int kBytes = kMapReady + 8 + 1024;  // the base is rounded up
  static_assert(kBytes <= 227 * 1024);
};

/// causal_forward_kernel for head size 64 on Hopper: chunks of 64 tokens, one warpgroup (a walker)
/// for each, taking turns. What must follow one after the other is short: a walker adds its chunk's
/// sums to those before it, hands them on, and computes the chunk's outputs while others do the
/// next ones'. The state before every chunk is saved.
template <int kFeatures, bool kMap, bool kSumsOnly>
__global__ void __launch_bounds__(kWalkThreads<kFeatures>, 1)
    causal_forward_kernel(const __grid_constant__ CausalArguments a,
                          const __grid_constant__ TensorMaps maps) {
#ifdef __CUDA_ARCH_FEAT_SM90_ALL
  using Memory = ForwardMemory<kFeatures, kMap>;
  constexpr int kSteps = kFeatures / 16, kHeadSteps = kHead / 16, kMover = 4 * kWalkers<kFeatures>;
  extern __shared__ unsigned char unaligned_memory[];
  unsigned char* const memory = unaligned_memory + (-shared_address(unaligned_memory) & 1023);
  const uint32_t base = shared_address(memory);
  float* const bias = reinterpret_cast<float*>(memory + Memory::kBias);
  const Tile<kHead> weight{base + Memory::kWeight};

  const Shape& shape = a.shape;
  const int item = blockIdx.x, segment = blockIdx.y;
  const int batch = item / shape.query_heads, head = item % shape.query_heads;
  const int state_head = head / (shape.query_heads / shape.state_heads);
  const int tid = threadIdx.x, lane = tid & 31,
            warp = __shfl_sync(0xffffffffu, tid >> 5, 0);  // uniform, and known to be
  const int walker = warp >> 2, row0 = (warp & 3) * 16, low = row0 + lane / 4, high = low + 8;
  const int features = shape.feature_size;
  const int chunk_begin = segment * a.plan.chunks_per_segment;
  const int turns = min(a.plan.chunks_per_segment, a.plan.chunks - chunk_begin);
  const int key_head = state_head / (shape.state_heads / shape.key_heads);
  const int value_head = state_head / (shape.state_heads / shape.value_heads);
  const auto stage_of = [&](int turn) { return turn % Memory::kStages * Memory::kStage; };
  const auto token_of = [&](int turn) { return (chunk_begin + turn) * kWalkTokens; };

  const auto load = [&](int turn) {  // by one thread
    if (turn >= turns) return;
    const uint32_t stage = base + stage_of(turn),
                   barrier = base + Memory::kLoaded + 8 * (turn % Memory::kStages);
    expect_bytes(barrier, Memory::kTile + (kSumsOnly ? 1 : 2) * Memory::kInputTile);
    load_tile(stage + Memory::kK, maps.k, barrier, 0, token_of(turn), key_head, batch);
    if constexpr (!kSumsOnly)
      load_tile(stage + Memory::kQ, maps.q, barrier, 0, token_of(turn), head, batch);
    load_tile(stage + Memory::kV, maps.v, barrier, 0, token_of(turn), value_head, batch);
  };

  const bool first_thread = tid == 32 * kMover;
  if (first_thread) {
    for (int stage = 0; stage < Memory::kStages; ++stage) {
      init_barrier(base + Memory::kLoaded + 8 * stage);
      init_barrier(base + Memory::kDone + 8 * stage, 4);
    }
    for (int i = 0; i < Relay<kFeatures>::kBarriers; ++i)
      init_barrier(base + Memory::kPassed + 8 * i);
    init_barrier(base + Memory::kMapReady, 2);
    publish_barriers();
  }
  __syncthreads();

  if (walker == kWalkers<kFeatures>) {
    give_registers<kMoverRegisters>();
    if (first_thread) {
      prefetch_map(maps.k);
      prefetch_map(maps.v);
      if constexpr (!kSumsOnly) prefetch_map(maps.q);
      wait_for_earlier_kernels();
      if constexpr (kMap) {
        expect_bytes(base + Memory::kMapReady, kFeatures * kHead * 2);
        load_tile(weight.base, maps.weight, base + Memory::kMapReady, 0, 0, state_head, 0);
      }
      for (int turn = 0; turn < Memory::kStages; ++turn) load(turn);
      for (int turn = 0; turn < turns; ++turn) {
        wait_barrier(base + Memory::kDone + 8 * (turn % Memory::kStages),
                     turn / Memory::kStages & 1);
        if constexpr (!kSumsOnly) {
          const uint32_t stage = base + stage_of(turn);
          const int chunk = chunk_begin + turn;
          store_tile(maps.o, stage + Memory::kQ, 0, token_of(turn), head, batch);
          if (a.states != nullptr && (chunk > 0 || a.initial_s != nullptr)) {
            store_bytes(
                a.states + (int64_t{item} * a.plan.chunks + chunk) * a.plan.state_record_bytes,
                stage + Memory::kRecord,
                kRecordBytes<kHead, kFeatures>);
          }
          commit_stores();
          wait_stores_read();
        }
        load(turn + Memory::kStages);
      }
    }
  } else {
    take_registers<kWalkerRegisters<kFeatures>>();
    wait_for_earlier_kernels();
    if (kMap && warp == 0) {
      load_bias<kFeatures, 32>(bias, a.bias, state_head, features);
      arrive(base + Memory::kMapReady, lane);
    }
    float all_s[kFeatures / 8][4] = {},
                            all_z[kFeatures / 8][2] = {};  // the sums alone: of all own chunks
    const Relay<kFeatures> relay(memory + Memory::kRelay, base + Memory::kPassed, walker, tid);
    if (!kSumsOnly && walker == 0) {
      const StartState from =
          start_state<kHead>(a, a.initial_s, a.initial_z, item, segment, batch, state_head);
      relay.start(from.s, from.z, low, features);
    }

    if constexpr (kMap) wait_barrier(base + Memory::kMapReady, 0);
    const PairMasks masks(/*not_after=*/true, warp & 3, lane);
    for (int turn = walker; turn < turns; turn += kWalkers<kFeatures>) {
      const uint32_t stage = base + stage_of(turn);
      const Tile<kHead> v_tile{stage + Memory::kV};
      const Tile<kFeatures> phi_k{kMap ? base + Memory::kPhiK + walker * Memory::kPhiTile
                                       : stage + Memory::kK};
      const int valid = min(kWalkTokens, shape.length - token_of(turn));
      wait_barrier(base + Memory::kLoaded + 8 * (turn % Memory::kStages),
                   turn / Memory::kStages & 1);

      uint32_t phi_q[kSteps][4];
      if constexpr (kMap) {
        const Tile<kHead> q_tile{stage + Memory::kQ}, k_tile{stage + Memory::kK};
        float y_k[kFeatures / 8][4], y_q[kFeatures / 8][4];
        begin_products();
#pragma unroll
        for (int step = 0; step < kHeadSteps; ++step)
          product<Major::kK, Major::kK>(y_k,
                                        operand<Major::kK>(k_tile, 0, step),
                                        operand<Major::kK>(weight, 0, step),
                                        step > 0);
        commit_products();
        if constexpr (!kSumsOnly) {
#pragma unroll
          for (int step = 0; step < kHeadSteps; ++step)
            product<Major::kK, Major::kK>(y_q,
                                          operand<Major::kK>(q_tile, 0, step),
                                          operand<Major::kK>(weight, 0, step),
                                          step > 0);
        }
        commit_products();
        wait_products<1>();
        settle(y_k);
        uint32_t own_phi_k[kSteps][4];
        activate<kFeatures>(own_phi_k, y_k, bias, 1.0F, low < valid, high < valid, lane);
        store_rows<kFeatures>(phi_k, row0, own_phi_k, lane);
        make_visible_to_wgmma();
        wait_products<0>();
        if constexpr (!kSumsOnly) {
          settle(y_q);
          activate<kFeatures>(phi_q, y_q, bias, a.rule.scale, true, true, lane);
        }
        sync_warpgroup(1 + walker);
      } else if constexpr (!kSumsOnly) {
#pragma unroll
        for (int step = 0; step < kSteps; ++step)
          Tile<kFeatures>{stage + Memory::kQ}.load_a(phi_q[step], row0, 2 * step, lane);
      }

      float s[kFeatures / 8][4], z[kFeatures / 8][4];  // the chunk's sums
      constexpr uint32_t kOnes = 0x3f803f80u;
      const uint32_t ones[4] = {kOnes, kOnes, kOnes, kOnes};
      begin_products();
#pragma unroll
      for (int step = 0; step < kWalkTokens / 16; ++step) {
        product<Major::kMN, Major::kMN>(
            s, operand<Major::kMN>(v_tile, 0, step), operand<Major::kMN>(phi_k, 0, step), step > 0);
        product<Major::kMN>(z, ones, operand<Major::kMN>(phi_k, 0, step), step > 0);
      }
      commit_products();
      if constexpr (kSumsOnly) {
        wait_products<0>();
        settle(s);
        settle(z);
#pragma unroll
        for (int n = 0; n < kFeatures / 8; ++n)
#pragma unroll
          for (int i = 0; i < 4; ++i) {
            all_s[n][i] += s[n][i];
            if (i < 2) all_z[n][i] += z[n][i];
          }
        if constexpr (kMap) sync_warpgroup(1 + walker);  // phi(k) may be overwritten
      } else {
        float p[8][4], num[8][4];
#pragma unroll
        for (int step = 0; step < kSteps; ++step)
          product<Major::kK>(p, phi_q[step], operand<Major::kK>(phi_k, 0, step), step > 0);
        commit_products();

        float before_s[kFeatures / 8][4], before_z[kFeatures / 8][2];
        relay.take(turn, before_s, before_z);
        wait_products<1>();
        settle(s);
        settle(z);
#pragma unroll
        for (int n = 0; n < kFeatures / 8; ++n)
#pragma unroll
          for (int i = 0; i < 4; ++i) {
            s[n][i] += before_s[n][i];
            z[n][i] += before_z[n][i & 1];
          }
        relay.give(s, z);

        float sum_low = 0.0F, sum_high = 0.0F, sum_z = 0.0F, before_low = 0.0F, before_high = 0.0F;
#pragma unroll
        for (int n = 0; n < kFeatures / 8; ++n) {
#pragma unroll
          for (int i = 0; i < 2; ++i) {
            const bool minus = !kMap && before_z[n][i] < 0.0F;  // given features may have any sign
            sum_low += minus ? -before_s[n][i] : before_s[n][i];
            sum_high += minus ? -before_s[n][i + 2] : before_s[n][i + 2];
            sum_z += minus ? -before_z[n][i] : before_z[n][i];
          }
          const float2 phi_low = unpack(phi_q[n / 2][2 * (n & 1)]),
                       phi_high = unpack(phi_q[n / 2][2 * (n & 1) + 1]);
          before_low = fmaf(phi_low.x, before_z[n][0], fmaf(phi_low.y, before_z[n][1], before_low));
          before_high =
              fmaf(phi_high.x, before_z[n][0], fmaf(phi_high.y, before_z[n][1], before_high));
        }
        sum_z = row_sum(sum_z);
        const float inverse = sum_z > 0.0F ? 1.0F / sum_z : 0.0F;
        uint32_t mean_hi, mean_lo;  // of the rows `low` and `high`
        split(row_sum(sum_low) * inverse, row_sum(sum_high) * inverse, mean_hi, mean_lo);
        const float2 of_hi = unpack(mean_hi), of_lo = unpack(mean_lo);
        const float mean_low = of_hi.x + of_lo.x,
                    mean_high =
                        of_hi.y + of_lo.y;  // what the halves hold, and so what is taken from S
        const Tile<kFeatures> centred{stage + Memory::kRecord};
        unsigned char* const record = memory + stage_of(turn) + Memory::kRecord;
        float* const z_shared = reinterpret_cast<float*>(record + kRecordZ<kHead, kFeatures>);
        float* const mean_shared = z_shared + kFeatures;  // behind the record, for this kernel
#pragma unroll
        for (int step = 0; step < kSteps; ++step) {
          uint32_t packed[4];
#pragma unroll
          for (int i = 0; i < 4; ++i) {
            const int n = 2 * step + i / 2, j = 2 * (i & 1);
            const float mean = (i & 1) == 0 ? mean_low : mean_high;
            packed[i] = pack(fmaf(-mean, before_z[n][0], before_s[n][j]),
                             fmaf(-mean, before_z[n][1], before_s[n][j + 1]));
          }
          centred.store_a(packed, row0, 2 * step, lane);
        }
        if ((warp & 3) == 0 && lane < 4) {
#pragma unroll
          for (int n = 0; n < kFeatures / 8; ++n)
            reinterpret_cast<float2*>(z_shared)[n * 4 + lane] = {before_z[n][0], before_z[n][1]};
        }
        if ((lane & 3) == 0) {
          mean_shared[low] = mean_low;
          mean_shared[high] = mean_high;
          const Tile<kHead> halves{centred.base + 2 * kFeatures * kHead};
          const auto store_half = [&](int row, int column, uint32_t pair) {
            *reinterpret_cast<uint16_t*>(memory + (halves.at(row, column / 8) - base) +
                                         column % 8 * 2) = static_cast<uint16_t>(pair);
          };
          store_half(0, low, mean_hi);
          store_half(1, low, mean_lo);
          store_half(0, high, mean_hi >> 16);
          store_half(1, high, mean_lo >> 16);
        }
        make_visible_to_wgmma();
        wait_products<0>();
        settle(p);
        sync_warpgroup(1 + walker);  // the state; and phi(k) may be overwritten

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
            if (is_seen(n, i, low, lane)) den[i] += p[n][i];
        }
        masks.clear(weights);
        begin_products();
#pragma unroll
        for (int step = 0; step < 4; ++step)
          product<Major::kMN>(num, weights[step], operand<Major::kMN>(v_tile, 0, step), true);
        commit_products();
        before_low = row_sum(before_low);
        before_high = row_sum(before_high);
        const float scale_low =
            1.0F / fmaxf(row_sum(den[0] + den[1]) + before_low + a.rule.added, a.rule.floor);
        const float scale_high =
            1.0F / fmaxf(row_sum(den[2] + den[3]) + before_high + a.rule.added, a.rule.floor);
        wait_products<0>();
        settle(num);
#pragma unroll
        for (int n = 0; n < 8; ++n) {  // what the state's centring has left out
          const float2 mean =
              *reinterpret_cast<const float2*>(mean_shared + 8 * n + 2 * (lane & 3));
          num[n][0] = fmaf(before_low, mean.x, num[n][0]);
          num[n][1] = fmaf(before_low, mean.y, num[n][1]);
          num[n][2] = fmaf(before_high, mean.x, num[n][2]);
          num[n][3] = fmaf(before_high, mean.y, num[n][3]);
        }
        stage_rows<kHead>(Tile<kHead>{stage + Memory::kQ}, row0, num, scale_low, scale_high, lane);
      }
      make_visible_to_wgmma();
      arrive(base + Memory::kDone + 8 * (turn % Memory::kStages), lane);
    }
    sync_walkers<kFeatures>();
    if constexpr (kSumsOnly) {  // the walkers' sums, in their order
      const auto of_walker = [&](int i) {
        return reinterpret_cast<float*>(memory + i * 2 * Relay<kFeatures>::kMatrixBytes) +
               (tid & 127);
      };
      if (walker > 0) {
#pragma unroll
        for (int n = 0; n < kFeatures / 8; ++n)
#pragma unroll
          for (int i = 0; i < 4; ++i) {
            of_walker(walker)[(4 * n + i) * 128] = all_s[n][i];
            if (i < 2) of_walker(walker)[(kFeatures / 2 + 2 * n + i) * 128] = all_z[n][i];
          }
      }
      sync_walkers<kFeatures>();
      if (walker == 0) {
#pragma unroll
        for (int other = 1; other < kWalkers<kFeatures>; ++other)
#pragma unroll
          for (int n = 0; n < kFeatures / 8; ++n)
#pragma unroll
            for (int i = 0; i < 4; ++i) {
              all_s[n][i] += of_walker(other)[(4 * n + i) * 128];
              if (i < 2) all_z[n][i] += of_walker(other)[(kFeatures / 2 + 2 * n + i) * 128];
            }
        float* const sums =
            a.sums + (int64_t{item} * a.plan.segments + segment) * a.plan.sums_floats;
        write_state<kFeatures>(all_s, all_z, sums, sums + features * kHead, low, features, lane);
      }
    } else if (walker == 0 && a.final_s != nullptr && segment + 1 == a.plan.segments &&
               head % (shape.query_heads / shape.state_heads) == 0) {
      relay.read(all_s, all_z);
      const int64_t state = int64_t{batch} * shape.state_heads + state_head;
      write_state<kFeatures>(all_s,
                             all_z,
                             a.final_s + state * features * kHead,
                             a.final_z + state * features,
                             low,
                             features,
                             lane);
    }
  }
#else
  __trap();
#endif
}

template <int kFeatures, bool kMap>
cudaError_t launch_forward(const CausalArguments& a, cudaStream_t stream) {
  return launch_forward_kernels(&causal_forward_kernel<kFeatures, kMap, true>,
                                &causal_forward_kernel<kFeatures, kMap, false>,
                                kWalkThreads<kFeatures>,
                                ForwardMemory<kFeatures, kMap>::kBytes,
                                a,
                                stream);
}

}  // namespace t2r::kernels::cuda::sm90
