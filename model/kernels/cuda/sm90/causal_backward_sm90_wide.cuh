#pragma once

#include "model/kernels/cuda/sm90/causal_forward_sm90_wide.cuh"
#include "model/kernels/cuda/sm90/causal_rows_sm90.cuh"

namespace t2r::kernels::cuda::sm90 {

constexpr int kWideBackwardThreads = 512;

/// Shared memory of the backward kernel for head size 128, in bytes from its start.
template <int kFeatures, bool kMap>
struct WideBackwardMemory {
  static constexpr int kTile = kWalkTokens * kHalfHead * 2;
  static constexpr int kInputTiles = kMap ? 2 : 1;
  static constexpr int kInputTile = kMap ? kTile : kWalkTokens * kFeatures * 2;
  static constexpr int kQ = 0;  // later d q
  static constexpr int kK = kQ + kInputTiles * kInputTile;
  static constexpr int kV = kK + kInputTiles * kInputTile;  // later d v
  static constexpr int kGradO = kV + 2 * kTile;             // later d k
  static constexpr int kStage = kGradO + 2 * kTile;
  static constexpr int kWeightTile = kMap ? kFeatures * kHalfHead * 2 : 0;
  static constexpr int kFeatureTile = kWalkTokens * kFeatures * 2;
  static constexpr int kMapTile = kMap ? kFeatureTile : 0;
  static constexpr int kWeight = 2 * kStage;
  static constexpr int kScaledPhiQ = kWeight + 2 * kWeightTile;  // R = phi(q) / denominator
  static constexpr int kPhiK = kScaledPhiQ + kFeatureTile;
  static constexpr int kGradYQ = kPhiK + kMapTile;
  static constexpr int kGradYK = kGradYQ + kMapTile;
  static constexpr int kGradState = kGradYK + kMapTile;  // dS, the high halves
  static constexpr int kState = kGradState + 2 * kFeatures * kWideHead;
  static constexpr int kBias = kState + kRecordBytes<kWideHead, kFeatures>;
  static constexpr int kE = kBias + 4 * kFeatures;
  static constexpr int kDz = kE + 4 * kWalkTokens;  // [warp of the third warpgroup][kFeatures]
  static constexpr int kBarriers = kDz + 16 * kFeatures;

  // Barriers. Of both stages: a tile has been loaded; a tile may be loaded again, after what lies
  // there now has been stored.
  static constexpr int kLoadedQ = kBarriers, kLoadedK = kLoadedQ + 16, kLoadedV = kLoadedK + 16,
                       kLoadedGradO = kLoadedV + 16;
  static constexpr int kDoneQ = kLoadedGradO + 16, kDoneK = kDoneQ + 16, kDoneV = kDoneK + 16,
                       kDoneGradO = kDoneV + 16;
  // Of what there is once: it is there for its readers; they are done with it.
  static constexpr int kStateReady = kDoneGradO + 16, kStateDone = kStateReady + 8;
  static constexpr int kRowsReady = kStateDone + 8,
                       kRowsDone = kRowsReady + 8;  // R, e (and phi(k))
  static constexpr int kPhiKDone = kRowsDone + 8;
  static constexpr int kGradYQReady = kPhiKDone + 8, kGradYQDone = kGradYQReady + 8;
  static constexpr int kGradYKReady = kGradYQDone + 8, kGradYKDone = kGradYKReady + 8;
  static constexpr int kGradStateReady = kGradYKDone + 8, kGradStateDone = kGradStateReady + 8;
  static constexpr int kGradOSummed = kGradStateDone + 8;
  static constexpr int kBytes = kGradOSummed + 8 + 1024;
  static_assert(kBytes <= 227 * 1024);
};

/// Sums over rows of tiles, each times a weight, held by one warp, without the tensor cores:
/// mma.sync would wait for all the wgmma that other warps have queued.
template <int kFeatures>
struct RowSums {
  static constexpr int kUnits = kFeatures / 8, kParts = 32 / kUnits,
                       kValues = 8 / kParts;  // kParts lanes share 8 features
  float value[kValues] = {};

  /// The first of this lane's features.
  __device__ __forceinline__ static int first_feature(int lane) {
    const int part = lane / kUnits;  // its bits, the highest first, choose halves
    return 8 * (lane % kUnits) + (kParts == 4 ? 2 * part : part);
  }

  /// Adds 16 rows; `weight(row)` is the weight of the tile's row `row`.
  template <class Weight>
  __device__ __forceinline__ void add(const Tile<kFeatures>& x,
                                      int row,
                                      int lane,
                                      const Weight& weight) {
    float sum[8] = {};
#pragma unroll
    for (int i = 0; i < 16 / kParts; ++i) {
      const int r = row + i * kParts + lane / kUnits;
      const uint4 unit = load_shared_16(x.at(r, lane % kUnits));
      const uint32_t pairs[4] = {unit.x, unit.y, unit.z, unit.w};
      const float w = weight(r);
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        const float2 pair = unpack(pairs[j]);
        sum[2 * j] = fmaf(w, pair.x, sum[2 * j]);
        sum[2 * j + 1] = fmaf(w, pair.y, sum[2 * j + 1]);
      }
    }
#pragma unroll
    for (int mask = 16, count = 4; mask >= kUnits; mask /= 2, count /= 2) {
      const bool upper = (lane & mask) != 0;
#pragma unroll
      for (int i = 0; i < count; ++i) {
        const float keep = upper ? sum[i + count] : sum[i], send = upper ? sum[i] : sum[i + count];
        sum[i] = keep + __shfl_xor_sync(0xffffffffu, send, mask);
      }
    }
#pragma unroll
    for (int i = 0; i < kValues; ++i) value[i] += sum[i];
  }

  /// Calls body(feature, sum) for the features that this lane holds.
  template <class Body>
  __device__ __forceinline__ void for_each(int lane, const Body& body) const {
#pragma unroll
    for (int i = 0; i < kValues; ++i) body(first_feature(lane) + i, value[i]);
  }
};

/// causal_backward_kernel for head size 128 on Hopper: chunks of 64 tokens, and a warpgroup for
/// each part of the work, all of them at different places of the walk: the first does the rows
/// (features, e, R, d q), the second the columns (d k, d v), the third the sums (dS, dz, dW, d b),
/// and the warps of the fourth move tiles, each of one tensor: a tile is loaded, served, is
/// overwritten by a gradient, stored, and loaded again. They wait for each other at barriers in
/// shared memory only.
///
/// dS lies in shared memory rounded to bfloat16, H. What H v_s lacks is nearly the same for every
/// s, as far as v has a mean: it is made up for by (dS - H) times the mean of some of the chunk's
/// v, which goes with dz.
template <int kFeatures, bool kMap, BackwardPart kPart>
__global__ void __launch_bounds__(kWideBackwardThreads, 1)
    causal_backward_wide_kernel(const __grid_constant__ CausalArguments a,
                                const __grid_constant__ TensorMaps maps) {
#ifdef __CUDA_ARCH_FEAT_SM90_ALL
  using Memory = WideBackwardMemory<kFeatures, kMap>;
  constexpr int kSteps = kFeatures / 16;
  constexpr bool kRowPart = kPart != BackwardPart::kColumns,
                 kColumnPart = kPart != BackwardPart::kRows;
  extern __shared__ unsigned char unaligned_memory[];
  unsigned char* const memory = unaligned_memory + (-shared_address(unaligned_memory) & 1023);
  const uint32_t base = shared_address(memory);
  const auto weight = [&](int half) {
    return Tile<kHalfHead>{base + Memory::kWeight + half * Memory::kWeightTile};
  };
  const Tile<kFeatures> scaled_phi_q{base + Memory::kScaledPhiQ}, grad_y_q{base + Memory::kGradYQ},
      grad_y_k{base + Memory::kGradYK};
  const Tile<kFeatures> s_centred{base + Memory::kState};
  const Tile<kFeatures> ds_hi{base + Memory::kGradState};
  const float* const z =
      reinterpret_cast<const float*>(memory + Memory::kState + 2 * kFeatures * kWideHead);
  const float* const value_mean = z + kFeatures;
  float* const dz_shared = reinterpret_cast<float*>(memory + Memory::kDz);
  float* const bias = reinterpret_cast<float*>(memory + Memory::kBias);
  float* const e_shared = reinterpret_cast<float*>(memory + Memory::kE);

  const Shape& shape = a.shape;
  const int item = blockIdx.x, segment = blockIdx.y;
  const int batch = item / shape.query_heads, head = item % shape.query_heads;
  const int heads_per_state = shape.query_heads / shape.state_heads,
            state_head = head / heads_per_state;
  const int tid = threadIdx.x, lane = tid & 31,
            warp = __shfl_sync(0xffffffffu, tid >> 5, 0);  // uniform, and known to be
  const int group = warp >> 2, row0 = (warp & 3) * 16, low = row0 + lane / 4, high = low + 8;
  const int features = shape.feature_size;
  const int chunk_begin = segment * a.plan.chunks_per_segment;
  const int chunk_end = min(chunk_begin + a.plan.chunks_per_segment, a.plan.chunks);
  const int turns = chunk_end - chunk_begin;  // turn 0 is the last chunk
  const int key_head = state_head / (shape.state_heads / shape.key_heads);
  const int value_head = state_head / (shape.state_heads / shape.value_heads);

  const auto wait = [&](int barrier, int turn) { wait_barrier(base + barrier, turn & 1); };
  const auto wait_slot = [&](int barrier, int turn) {
    wait_barrier(base + barrier + 8 * (turn & 1), turn >> 1 & 1);
  };
  const auto done = [&](int barrier) { arrive(base + barrier, lane); };
  const auto done_slot = [&](int barrier, int turn) {
    arrive(base + barrier + 8 * (turn & 1), lane);
  };
  const auto stage_of = [&](int turn) { return base + (turn & 1) * Memory::kStage; };
  const auto tile_of = [&](int turn, int at, int half) {
    return Tile<kHalfHead>{stage_of(turn) + at + half * Memory::kTile};
  };
  const auto token_of = [&](int turn) { return (chunk_end - 1 - turn) * kWalkTokens; };
  const auto valid_of = [&](int turn) { return min(kWalkTokens, shape.length - token_of(turn)); };

  // By one thread.
  const auto load = [&](const CUtensorMap& map,
                        int tiles,
                        int bytes,
                        int at,
                        int loaded,
                        int turn,
                        int of_head) {
    if (turn >= turns) return;
    const uint32_t barrier = base + loaded + 8 * (turn & 1);
    expect_bytes(barrier, tiles * bytes);
    for (int i = 0; i < tiles; ++i)
      load_tile(
          stage_of(turn) + at + i * bytes, map, barrier, 64 * i, token_of(turn), of_head, batch);
  };
  const auto prefetch = [&](const CUtensorMap& map, int tiles, int turn, int of_head) {
    if (turn >= turns) return;
    for (int i = 0; i < tiles; ++i) prefetch_tile(map, 64 * i, token_of(turn), of_head, batch);
  };
  const auto load_q = [&](int turn) {
    load(maps.q, Memory::kInputTiles, Memory::kInputTile, Memory::kQ, Memory::kLoadedQ, turn, head);
  };
  const auto load_k = [&](int turn) {
    load(maps.k,
         Memory::kInputTiles,
         Memory::kInputTile,
         Memory::kK,
         Memory::kLoadedK,
         turn,
         key_head);
  };
  const auto load_v = [&](int turn) {
    load(maps.v, 2, Memory::kTile, Memory::kV, Memory::kLoadedV, turn, value_head);
  };
  const auto load_grad_o = [&](int turn) {
    load(maps.grad_o, 2, Memory::kTile, Memory::kGradO, Memory::kLoadedGradO, turn, head);
  };
  const auto has_state = [&](int turn) {
    return turn < turns && (turn + 1 < turns || chunk_begin > 0 || a.initial_s != nullptr);
  };
  const auto record_of = [&](int turn) {
    return a.states +
           (int64_t{item} * a.plan.chunks + chunk_end - 1 - turn) * a.plan.state_record_bytes;
  };
  const auto load_state = [&](int turn) {
    expect_bytes(base + Memory::kStateReady, kRecordBytes<kWideHead, kFeatures>);
    load_bytes(base + Memory::kState,
               record_of(turn),
               kRecordBytes<kWideHead, kFeatures>,
               base + Memory::kStateReady);
  };

  if (tid == 0) {
    constexpr int kBoth = kPart == BackwardPart::kAll
                              ? 8
                              : 4;  // warps of the rows and of the columns, or of the only ones
    const auto of_stages = [&](int barrier, int arrivals) {
      init_barrier(base + barrier, arrivals);
      init_barrier(base + barrier + 8, arrivals);
    };
    of_stages(Memory::kLoadedQ, 1);
    of_stages(Memory::kLoadedK, 1);
    of_stages(Memory::kLoadedV, 1);
    of_stages(Memory::kLoadedGradO, 1);
    of_stages(Memory::kDoneQ, 4);
    of_stages(Memory::kDoneK, kMap ? 4 : kBoth);
    of_stages(Memory::kDoneV, 4);
    of_stages(Memory::kDoneGradO, 4);
    init_barrier(base + Memory::kStateReady, 1);
    init_barrier(base + Memory::kStateDone, 4);
    init_barrier(base + Memory::kRowsReady, 4);
    init_barrier(base + Memory::kRowsDone, kColumnPart ? 8 : 4);
    init_barrier(base + Memory::kPhiKDone, kBoth);
    for (int barrier = Memory::kGradYQReady; barrier <= Memory::kGradOSummed; barrier += 8)
      init_barrier(base + barrier, 4);
    publish_barriers();
  }
  wait_for_earlier_kernels();
  if (tid == 0) {
    for (int turn = 0; turn < 2; ++turn) {
      load_k(turn);
      load_q(turn);
      load_v(turn);
      load_grad_o(turn);
      if (kRowPart && turn == 0 && has_state(0)) load_state(0);
    }
  }
  if constexpr (kMap) {
    copy_weight_async<kWideHead, kFeatures, kWideBackwardThreads>(
        [&](int row, int unit) { return weight(unit / 8).at(row, unit % 8); },
        a.weight,
        state_head,
        features);
    load_bias<kFeatures, kWideBackwardThreads>(bias, a.bias, state_head, features);
    commit_copies();
    wait_copies<0>();
    make_visible_to_wgmma();
  }
  __syncthreads();

  if (group == 0) {
    take_registers<144>();
    float* const saved_denominator =
        a.row_values == nullptr ? nullptr : a.row_values + int64_t{item} * 2 * shape.length;
    float* const saved_e = saved_denominator + shape.length;
    const auto row_values_of = [&](int turn) {
      return RowValues(
          saved_denominator, saved_e, token_of(turn), low, turn < turns ? shape.length : 0);
    };
    RowValues next(nullptr, nullptr, 0, 0, 0);
    const PairMasks masks(/*not_after=*/true, warp & 3, lane);
    if constexpr (!kRowPart) next = row_values_of(0);

    for (int turn = 0; turn < turns; ++turn) {
      const int first = token_of(turn), valid = valid_of(turn);
      const Tile<kFeatures> phi_k{kMap ? base + Memory::kPhiK : stage_of(turn) + Memory::kK};
      const Tile<kFeatures> given_phi_q{stage_of(turn) + Memory::kQ};

      uint32_t phi_q[kSteps][4];
      OfRows mean_grad;  // d o . m, m the mean of the values so far
      const auto meet_mean = [&] {
        wait_slot(Memory::kLoadedGradO, turn);
        wait(Memory::kStateReady, turn);
#pragma unroll
        for (int half = 0; half < 2; ++half)
#pragma unroll
          for (int i = 0; i < 2; ++i) {
            const int unit =
                (lane & 3) + 4 * (i ^ (lane / 4 & 1));  // of neighbouring rows, in different banks
            const uint4 of_low = load_shared_16(tile_of(turn, Memory::kGradO, half).at(low, unit));
            const uint4 of_high =
                load_shared_16(tile_of(turn, Memory::kGradO, half).at(high, unit));
            const uint32_t pairs_low[4] = {of_low.x, of_low.y, of_low.z, of_low.w},
                           pairs_high[4] = {of_high.x, of_high.y, of_high.z, of_high.w};
#pragma unroll
            for (int j = 0; j < 4; ++j) {
              const float2 mean = *reinterpret_cast<const float2*>(value_mean + half * kHalfHead +
                                                                   8 * unit + 2 * j);
              const float2 x_low = unpack(pairs_low[j]), x_high = unpack(pairs_high[j]);
              mean_grad.low = fmaf(x_low.x, mean.x, fmaf(x_low.y, mean.y, mean_grad.low));
              mean_grad.high = fmaf(x_high.x, mean.x, fmaf(x_high.y, mean.y, mean_grad.high));
            }
          }
        mean_grad = row_sums(mean_grad);
      };
      wait_slot(Memory::kLoadedK, turn);
      wait_slot(Memory::kLoadedQ, turn);
      if constexpr (kMap) {
        float y_k[kFeatures / 8][4], y_q[kFeatures / 8][4];
        begin_products();
#pragma unroll
        for (int half = 0; half < 2; ++half)
#pragma unroll
          for (int step = 0; step < 4; ++step)
            product<Major::kK, Major::kK>(
                y_k,
                operand<Major::kK>(tile_of(turn, Memory::kK, half), 0, step),
                operand<Major::kK>(weight(half), 0, step),
                half + step > 0);
        commit_products();
#pragma unroll
        for (int half = 0; half < 2; ++half)
#pragma unroll
          for (int step = 0; step < 4; ++step)
            product<Major::kK, Major::kK>(
                y_q,
                operand<Major::kK>(tile_of(turn, Memory::kQ, half), 0, step),
                operand<Major::kK>(weight(half), 0, step),
                half + step > 0);
        commit_products();
        if constexpr (kRowPart) meet_mean();
        wait_products<1>();
        settle(y_k);
        uint32_t own_phi_k[kSteps][4];
        activate<kFeatures>(own_phi_k, y_k, bias, 1.0F, low < valid, high < valid, lane);
        wait(Memory::kPhiKDone, turn + 1);
        store_rows<kFeatures>(phi_k, row0, own_phi_k, lane);
        make_visible_to_wgmma();
        wait_products<0>();
        settle(y_q);
        if constexpr (!kColumnPart) done_slot(Memory::kDoneK, turn);
        activate<kFeatures>(phi_q, y_q, bias, a.rule.scale, low < valid, high < valid, lane);
        if constexpr (kRowPart) sync_warpgroup(1);  // phi(k) of all rows
      } else {
#pragma unroll
        for (int step = 0; step < kSteps; ++step)
          given_phi_q.load_a(phi_q[step], row0, 2 * step, lane);
        if constexpr (kRowPart) meet_mean();
      }

      RowTerms terms;
      const auto publish_rows = [&] {
        wait(Memory::kRowsDone, turn + 1);
        store_scaled_rows<kFeatures>(
            scaled_phi_q, row0, phi_q, terms.inverse.low, terms.inverse.high, lane);
        if ((lane & 3) == 0) {
          e_shared[low] = terms.e.low;
          e_shared[high] = terms.e.high;
        }
        make_visible_to_wgmma();
        done(Memory::kRowsReady);
      };
      if constexpr (kRowPart) {
        float p[8][4], dp[8][4], dphi[kFeatures / 8][4];
        wait_slot(Memory::kLoadedV, turn);
        begin_products();
#pragma unroll
        for (int step = 0; step < kSteps; ++step)
          product<Major::kK>(p, phi_q[step], operand<Major::kK>(phi_k, 0, step), step > 0);
#pragma unroll
        for (int half = 0; half < 2; ++half)
#pragma unroll
          for (int step = 0; step < 4; ++step)
            product<Major::kK, Major::kK>(
                dp,
                operand<Major::kK>(tile_of(turn, Memory::kGradO, half), 0, step),
                operand<Major::kK>(tile_of(turn, Memory::kV, half), 0, step),
                half + step > 0);
        commit_products();
#pragma unroll
        for (int half = 0; half < 2; ++half)
#pragma unroll
          for (int step = 0; step < 4; ++step)
            product<Major::kK, Major::kMN>(
                dphi,
                operand<Major::kK>(tile_of(turn, Memory::kGradO, half), 0, step),
                operand<Major::kMN>(s_centred, half * 64, step),
                half + step > 0);
        commit_products();
        wait_products<1>();
        settle(p);
        settle(dp);
        if constexpr (!kColumnPart) done_slot(Memory::kDoneV, turn);
        terms.add_seen(p, dp, low, lane);
        wait_products<0>();
        settle(dphi);
        OfRows before;  // of the denominator, what comes from before the chunk
        add_dots<kFeatures>(before, phi_q, z, lane);
        terms.add_before<kFeatures>(phi_q, dphi);
        terms.finish(before, mean_grad, a.rule);
        if constexpr (kPart == BackwardPart::kRows)
          terms.save(saved_denominator, saved_e, first, low, valid, a.rule, lane);
        publish_rows();  // the columns wait for it
        add_outer<kFeatures>(
            dphi, {terms.e.low + mean_grad.low, terms.e.high + mean_grad.high}, z, lane);
        uint32_t weights[4][4];
        pack_rows(weights, dp, terms.e);
        masks.clear(weights);
        begin_products();
#pragma unroll
        for (int step = 0; step < 4; ++step)
          product<Major::kMN>(dphi, weights[step], operand<Major::kMN>(phi_k, 0, step), true);
        commit_products();
        wait_products<0>();
        settle(dphi);
        done(Memory::kStateDone);  // not before the last z is in its register, wherefore the
                                   // products waited
        if constexpr (kMap) {
          done(Memory::kPhiKDone);
          uint32_t grad_y[kSteps][4];
          grad_map_of_rows<kFeatures>(
              grad_y,
              phi_q,
              dphi,
              {terms.inverse.low * a.rule.scale, terms.inverse.high * a.rule.scale});
          float grad[2][8][4];
          begin_products();
#pragma unroll
          for (int half = 0; half < 2; ++half)
#pragma unroll
            for (int step = 0; step < kSteps; ++step)
              product<Major::kMN>(
                  grad[half], grad_y[step], operand<Major::kMN>(weight(half), 0, step), step > 0);
          commit_products();
          store_rows<kFeatures>(grad_y_q, row0, grad_y, lane);
          make_visible_to_wgmma();
          done(Memory::kGradYQReady);
          wait_products<0>();
          settle(grad[0]);
          settle(grad[1]);
          wait(Memory::kGradYQDone, turn);  // and with q, where d q goes
#pragma unroll
          for (int half = 0; half < 2; ++half)
            stage_rows<kHalfHead>(
                tile_of(turn, Memory::kQ, half), row0, grad[half], 1.0F, 1.0F, lane);
        } else {
          done_slot(Memory::kDoneK, turn);
          stage_rows<kFeatures>(
              given_phi_q, row0, dphi, terms.inverse.low, terms.inverse.high, lane);
        }
        make_visible_to_wgmma();
        done_slot(Memory::kDoneQ, turn);
      } else {
        terms.inverse = {1.0F / next.denominator.low, 1.0F / next.denominator.high};
        terms.e = next.e;
        next = row_values_of(turn + 1);
        publish_rows();
        done_slot(Memory::kDoneQ, turn);
      }
    }
  } else if (group == 1) {
    take_registers<176>();
    if constexpr (kColumnPart) {
      const PairMasks masks(/*not_after=*/false, warp & 3, lane);
      for (int turn = 0; turn < turns; ++turn) {
        const Tile<kFeatures> phi_k{kMap ? base + Memory::kPhiK : stage_of(turn) + Memory::kK};
        if constexpr (!kMap) wait_slot(Memory::kLoadedK, turn);
        wait_slot(Memory::kLoadedV, turn);
        wait_slot(Memory::kLoadedGradO, turn);
        wait(Memory::kRowsReady, turn);
        uint32_t own_phi_k[kSteps][4];
#pragma unroll
        for (int step = 0; step < kSteps; ++step)
          phi_k.load_a(own_phi_k[step], row0, 2 * step, lane);
        float p[8][4], dp[8][4], dphi[kFeatures / 8][4];
        begin_products();
#pragma unroll
        for (int step = 0; step < kSteps; ++step)
          product<Major::kK>(
              p, own_phi_k[step], operand<Major::kK>(scaled_phi_q, 0, step), step > 0);
#pragma unroll
        for (int half = 0; half < 2; ++half)
#pragma unroll
          for (int step = 0; step < 4; ++step)
            product<Major::kK, Major::kK>(
                dp,
                operand<Major::kK>(tile_of(turn, Memory::kV, half), 0, step),
                operand<Major::kK>(tile_of(turn, Memory::kGradO, half), 0, step),
                half + step > 0);
        commit_products();
        wait(Memory::kGradStateReady, turn);
#pragma unroll
        for (int half = 0; half < 2; ++half)
#pragma unroll
          for (int step = 0; step < 4; ++step)
            product<Major::kK, Major::kMN>(
                dphi,
                operand<Major::kK>(tile_of(turn, Memory::kV, half), 0, step),
                operand<Major::kMN>(ds_hi, half * 64, step),
                half + step > 0);
        commit_products();
        if constexpr (kMap) {
          done(Memory::kPhiKDone);
        } else {
          done_slot(Memory::kDoneK, turn);
        }
        wait_products<1>();
        settle(p);
        settle(dp);
        uint32_t weights[4][4], grad_weights[4][4];
        pack_columns(weights, grad_weights, p, dp, e_shared, lane);
        masks.clear(weights);
        masks.clear(grad_weights);
        // The halves of d v and of d k start one by one, so that there are registers for all that
        // is on its way.
        float dv[2][8][4];
        const auto start_dv = [&](int half) {
          begin_products();
#pragma unroll
          for (int step = 0; step < kSteps; ++step)
            product<Major::kK>(dv[half],
                               own_phi_k[step],
                               operand<Major::kK>(ds_hi, half * kHalfHead, step),
                               step > 0);
#pragma unroll
          for (int step = 0; step < 4; ++step)
            product<Major::kMN>(dv[half],
                                weights[step],
                                operand<Major::kMN>(tile_of(turn, Memory::kGradO, half), 0, step),
                                true);
          commit_products();
        };
        begin_products();
#pragma unroll
        for (int step = 0; step < 4; ++step)
          product<Major::kMN>(
              dphi, grad_weights[step], operand<Major::kMN>(scaled_phi_q, 0, step), true);
        commit_products();
        start_dv(0);
        wait_products<1>();
        settle(dphi);
        done(Memory::kRowsDone);
        uint32_t grad_y[kSteps][4];
        grad_map_of_columns<kFeatures, kMap>(grad_y, own_phi_k, dphi, dz_shared, lane);
        start_dv(1);
        wait(Memory::kGradOSummed, turn);  // d k goes where d o was
        if constexpr (kMap) {
          wait(Memory::kGradYKDone, turn + 1);
          store_rows<kFeatures>(grad_y_k, row0, grad_y, lane);
          make_visible_to_wgmma();
          done(Memory::kGradYKReady);
        }
        wait_products<0>();
        settle(dv[0]);
        settle(dv[1]);
        if constexpr (!kMap)
          make_visible_to_wgmma();  // dz has been read, not only asked for: with a map, grad_y's
                                    // store has seen to it
        done(Memory::kGradStateDone);
        float grad[2][8][4];
        const auto start_dk = [&](int half) {
          if constexpr (kMap) {
            begin_products();
#pragma unroll
            for (int step = 0; step < kSteps; ++step)
              product<Major::kMN>(
                  grad[half], grad_y[step], operand<Major::kMN>(weight(half), 0, step), step > 0);
            commit_products();
          }
        };
        start_dk(0);
        sync_warpgroup(2);  // everybody is done with v and d o
        stage_rows<kHalfHead>(tile_of(turn, Memory::kV, 0), row0, dv[0], 1.0F, 1.0F, lane);
        start_dk(1);
        stage_rows<kHalfHead>(tile_of(turn, Memory::kV, 1), row0, dv[1], 1.0F, 1.0F, lane);
        make_visible_to_wgmma();
        done_slot(Memory::kDoneV, turn);
        if constexpr (kMap) {
          wait_products<1>();
          settle(grad[0]);
          stage_rows<kHalfHead>(tile_of(turn, Memory::kGradO, 0), row0, grad[0], 1.0F, 1.0F, lane);
          wait_products<0>();
          settle(grad[1]);
          stage_rows<kHalfHead>(tile_of(turn, Memory::kGradO, 1), row0, grad[1], 1.0F, 1.0F, lane);
        } else {
          store_rows<kFeatures>(
              Tile<kFeatures>{stage_of(turn) + Memory::kGradO}, row0, grad_y, lane);
        }
        make_visible_to_wgmma();
        done_slot(Memory::kDoneGradO, turn);
      }
    }
  } else if (group == 2) {
    take_registers<168>();
    float ds[2][kFeatures / 8][4] = {},
                            dw[2][kFeatures / 8][4] =
                                {};  // dS^T and dW^T, the halves' rows one after the other
    RowSums<kFeatures> dz, db;       // each warp's share
    if constexpr (kColumnPart) {
      const StartState from =
          start_state<kWideHead>(a,
                                 head % heads_per_state == 0 ? a.grad_final_s : nullptr,
                                 a.grad_final_z,
                                 item,
                                 segment,
                                 batch,
                                 state_head);
      if (from.s != nullptr) {
#pragma unroll
        for (int half = 0; half < 2; ++half)
#pragma unroll
          for (int n = 0; n < kFeatures / 8; ++n)
#pragma unroll
            for (int i = 0; i < 4; ++i) {
              const int feature = n * 8 + 2 * (lane & 3) + (i & 1);
              if (feature < features)
                ds[half][n][i] =
                    from.s[feature * kWideHead + half * kHalfHead + (i < 2 ? low : high)];
            }
#pragma unroll
        for (int i = 0; i < RowSums<kFeatures>::kValues; ++i) {
          const int feature = RowSums<kFeatures>::first_feature(lane) + i;
          if (warp % 4 == 0 && feature < features) dz.value[i] = from.z[feature];
        }
      }
    }
    const auto add_shares =
        [&](const RowSums<kFeatures>&
                shares) {  // in the first row of dz_shared, of the thread that asks
          shares.for_each(lane, [&](int feature, float value) {
            dz_shared[(warp & 3) * kFeatures + feature] = value;
          });
          sync_warpgroup(3);
          const float* const from = dz_shared + (tid & (kFeatures - 1));
          return (from[0] + from[kFeatures]) + (from[2 * kFeatures] + from[3 * kFeatures]);
        };
    const auto publish_state = [&](int turn) {
      // Some rows of v, for their mean.
      float mean[2][2] = {};
      const int valid = valid_of(turn);
      wait_slot(Memory::kLoadedV, turn);
#pragma unroll
      for (int i = 0; i < 4; ++i)
#pragma unroll
        for (int half = 0; half < 2; ++half)
#pragma unroll
          for (int j = 0; j < 2; ++j) {
            const int column = low + 8 * j;
            const uint32_t at =
                tile_of(turn, Memory::kV, half).at(i * valid / 4, column / 8) + column % 8 * 2;
            mean[half][j] +=
                0.25F * __bfloat162float(*reinterpret_cast<const bf16*>(memory + (at - base)));
          }
      wait(Memory::kGradStateDone, turn + 1);
      // dS - H times the mean, summed over the eight lanes of a column: every exchange halves what
      // a lane looks after, down to one n.
      float missing[kFeatures / 16][2];
      const auto exchange = [&](float keep, float send, int mask) {
        return keep + __shfl_xor_sync(0xffffffffu, send, mask);
      };
      const bool upper16 = (lane & 16) != 0, upper8 = (lane & 8) != 0, upper4 = (lane & 4) != 0;
#pragma unroll
      for (int pair = 0; pair < kSteps / 2; ++pair) {
        float sums[2][4] = {};
#pragma unroll
        for (int side = 0; side < 2; ++side) {
          const int step = pair + side * kSteps / 2;
#pragma unroll
          for (int half = 0; half < 2; ++half) {
            uint32_t rounded[4];
#pragma unroll
            for (int i = 0; i < 4; ++i) {
              const float x = ds[half][2 * step + i / 2][2 * (i & 1)],
                          y = ds[half][2 * step + i / 2][2 * (i & 1) + 1];
              rounded[i] = pack(x, y);
              const float2 there = unpack(rounded[i]);
              sums[side][i / 2 * 2] = fmaf(x - there.x, mean[half][i & 1], sums[side][i / 2 * 2]);
              sums[side][i / 2 * 2 + 1] =
                  fmaf(y - there.y, mean[half][i & 1], sums[side][i / 2 * 2 + 1]);
            }
            ds_hi.store_a(rounded, half * kHalfHead + row0, 2 * step, lane);
          }
        }
#pragma unroll
        for (int i = 0; i < 4; ++i)
          missing[2 * pair + i / 2][i & 1] =
              exchange(upper16 ? sums[1][i] : sums[0][i], upper16 ? sums[0][i] : sums[1][i], 16);
      }
      int n = upper16 ? kFeatures / 16 : 0;
#pragma unroll
      for (int count = kFeatures / 32, mask = 8; mask >= 4; mask /= 2, count /= 2) {
        const bool upper = mask == 8 ? upper8 : upper4;
        if (count > 0 && upper) n += count;
#pragma unroll
        for (int i = 0; i < (count > 0 ? count : 1); ++i)
#pragma unroll
          for (int j = 0; j < 2; ++j) {
            if (count > 0) {
              missing[i][j] = exchange(upper ? missing[i + count][j] : missing[i][j],
                                       upper ? missing[i][j] : missing[i + count][j],
                                       mask);
            } else {
              missing[i][j] = exchange(missing[i][j], missing[i][j], mask);
            }
          }
      }
      *reinterpret_cast<float2*>(dz_shared + (warp & 3) * kFeatures + 8 * n + 2 * (lane & 3)) = {
          missing[0][0], missing[0][1]};
      __syncwarp();
      dz.for_each(lane, [&](int feature, float value) {
        dz_shared[(warp & 3) * kFeatures + feature] += value;
      });
      sync_warpgroup(3);
      const int feature = tid & 127;
      if (feature < kFeatures) {
        float* const to = dz_shared + feature;
        *to = (to[0] + to[kFeatures]) + (to[2 * kFeatures] + to[3 * kFeatures]);
      }
      make_visible_to_wgmma();
      done(Memory::kGradStateReady);
    };
    if constexpr (kColumnPart) publish_state(0);

    for (int turn = 0; turn < turns; ++turn) {
      wait_slot(Memory::kLoadedGradO, turn);
      wait(Memory::kRowsReady, turn);
      begin_products();
#pragma unroll
      for (int half = 0; half < 2; ++half)
#pragma unroll
        for (int step = 0; step < 4; ++step)
          product<Major::kMN, Major::kMN>(
              ds[half],
              operand<Major::kMN>(tile_of(turn, Memory::kGradO, half), 0, step),
              operand<Major::kMN>(scaled_phi_q, 0, step),
              true);
      commit_products();
      dz.add(scaled_phi_q, row0, lane, [&](int row) { return e_shared[row]; });
      wait_products<0>();
      settle(ds[0]);
      settle(ds[1]);
      done(Memory::kRowsDone);
      if constexpr (kColumnPart) {
        done(Memory::kGradOSummed);
      } else {
        done_slot(Memory::kDoneGradO, turn);
      }
      const auto add_to_map = [&](const Tile<kFeatures>& grad_y, int input, float weight_of_rows) {
        begin_products();
#pragma unroll
        for (int half = 0; half < 2; ++half)
#pragma unroll
          for (int step = 0; step < 4; ++step)
            product<Major::kMN, Major::kMN>(
                dw[half],
                operand<Major::kMN>(tile_of(turn, input, half), 0, step),
                operand<Major::kMN>(grad_y, 0, step),
                true);
        commit_products();
        db.add(grad_y, row0, lane, [&](int) { return weight_of_rows; });
        wait_products<0>();
        settle(dw[0]);
        settle(dw[1]);
      };
      if constexpr (kMap && kRowPart) {
        wait_slot(Memory::kLoadedQ, turn);
        wait(Memory::kGradYQReady, turn);
        add_to_map(grad_y_q, Memory::kQ, 1.0F / a.rule.scale);
        done(Memory::kGradYQDone);
      }
      if constexpr (kColumnPart) {
        if (turn + 1 < turns) publish_state(turn + 1);
      }
      if constexpr (kMap && kColumnPart) {
        wait_slot(Memory::kLoadedK, turn);
        wait(Memory::kGradYKReady, turn);
        add_to_map(grad_y_k, Memory::kK, 1.0F);
        done(Memory::kGradYKDone);
        done_slot(Memory::kDoneK, turn);
      }
    }

    if constexpr (kColumnPart) wait(Memory::kGradStateDone, turns - 1);  // and with dz_shared
    const auto write_transposed = [&](const float(&value)[2][kFeatures / 8][4], float* to) {
#pragma unroll
      for (int half = 0; half < 2; ++half)
#pragma unroll
        for (int n = 0; n < kFeatures / 8; ++n)
#pragma unroll
          for (int i = 0; i < 4; ++i) {
            const int feature = n * 8 + 2 * (lane & 3) + (i & 1);
            if (feature < features)
              to[feature * kWideHead + half * kHalfHead + (i < 2 ? low : high)] = value[half][n][i];
          }
    };
    const int feature = tid & 127;
    const float whole_dz = add_shares(dz);
    float *to_s = nullptr, *to_z = nullptr;
    if constexpr (kPart == BackwardPart::kRows) {
      to_s = a.sums + (int64_t{item} * a.plan.segments + segment) * a.plan.sums_floats;
      to_z = to_s + features * kWideHead;
    } else if (a.grad_initial_s != nullptr && segment == 0) {
      to_s = a.grad_initial_s + int64_t{item} * features * kWideHead;
      to_z = a.grad_initial_z + int64_t{item} * features;
    }
    if (to_s != nullptr) {
      write_transposed(ds, to_s);
      if (feature < features) to_z[feature] = whole_dz;
    }
    if constexpr (kMap) {
      constexpr int kLaunches = kPart == BackwardPart::kAll ? 1 : 2,
                    kLaunch = kPart == BackwardPart::kColumns ? 1 : 0;
      float* const part =
          a.grad_weight + ((int64_t{item} * a.plan.segments + segment) * kLaunches + kLaunch) *
                              (kWideHead + 2) * features;
      write_transposed(dw, part);
      sync_warpgroup(3);  // dz has been read
      const float whole_db = add_shares(db);
      if (feature < features) {
        part[features * kWideHead + feature] = whole_db;
        part[features * kWideHead + features + feature] = 0.0F;
      }
    }
  } else {
    give_registers<24>();
    // One warp for each tensor's tiles; the first brings the states too. What is loaded next is
    // brought to the L2 cache before.
    const auto store = [&](const CUtensorMap& map, int tiles, int bytes, int at, int turn) {
      for (int i = 0; i < tiles; ++i)
        store_tile(map, stage_of(turn) + at + i * bytes, 64 * i, token_of(turn), head, batch);
      commit_stores();
      wait_stores_read();
    };
    for (int turn = 0; turn < turns; ++turn) {
      if (warp % 4 == 0) {
        if constexpr (kRowPart) {
          if (lane == 0 && has_state(turn + 1))
            prefetch_bytes(record_of(turn + 1), kRecordBytes<kWideHead, kFeatures>);
        }
        if (lane == 0) prefetch(maps.q, Memory::kInputTiles, turn + 2, head);
        if constexpr (kRowPart) {
          const auto clear_state = [&] {
            for (int i = lane; i < kRecordBytes<kWideHead, kFeatures> / 16; i += 32)
              store_shared_16(base + Memory::kState + 16 * i, uint4{0, 0, 0, 0});
            make_visible_to_wgmma();
            done(Memory::kStateReady);
          };
          if (turn == 0 && !has_state(0)) clear_state();
          wait(Memory::kStateDone, turn);
          if (turn + 1 < turns) {
            if (!has_state(turn + 1)) {
              clear_state();
            } else if (lane == 0) {
              load_state(turn + 1);
            }
          }
        }
        wait_slot(Memory::kDoneQ, turn);
        if (lane == 0) {
          if constexpr (kRowPart)
            store(maps.grad_q, Memory::kInputTiles, Memory::kInputTile, Memory::kQ, turn);
          load_q(turn + 2);
        }
      } else if (warp % 4 == 1) {
        if (lane == 0) prefetch(maps.k, Memory::kInputTiles, turn + 2, key_head);
        wait_slot(Memory::kDoneK, turn);
        if (lane == 0) load_k(turn + 2);
      } else if (warp % 4 == 2) {
        if (lane == 0) prefetch(maps.v, 2, turn + 2, value_head);
        wait_slot(Memory::kDoneV, turn);
        if (lane == 0) {
          if constexpr (kColumnPart) store(maps.grad_v, 2, Memory::kTile, Memory::kV, turn);
          load_v(turn + 2);
        }
      } else {
        if (lane == 0) prefetch(maps.grad_o, 2, turn + 2, head);
        wait_slot(Memory::kDoneGradO, turn);
        if (lane == 0) {
          if constexpr (kColumnPart)
            store(maps.grad_k,
                  Memory::kInputTiles,
                  kMap ? Memory::kTile : Memory::kInputTile,
                  Memory::kGradO,
                  turn);
          load_grad_o(turn + 2);
        }
      }
      __syncwarp();
    }
  }
#else
  __trap();
#endif
}

template <int kFeatures, bool kMap>
cudaError_t launch_backward_wide(const CausalArguments& a, cudaStream_t stream) {
  return launch_backward_kernels(
      /*early=*/false,
      &causal_backward_wide_kernel<kFeatures, kMap, BackwardPart::kAll>,
      &causal_backward_wide_kernel<kFeatures, kMap, BackwardPart::kRows>,
      &causal_backward_wide_kernel<kFeatures, kMap, BackwardPart::kColumns>,
      kWideBackwardThreads,
      WideBackwardMemory<kFeatures, kMap>::kBytes,
      a,
      stream);
}

}  // namespace t2r::kernels::cuda::sm90
