#pragma once

#include "model/kernels/cuda/sm90/causal_rows_sm90.cuh"

namespace t2r::kernels::cuda::sm90 {

constexpr int kBackwardThreads = 512;

/// The barriers of something of which there are `count`, from byte `at` of shared memory on: a
/// turn's is the one of its place.
struct Ring {
  int at, count;
  constexpr int end() const { return at + 8 * count; }
};

/// Shared memory of the backward kernel for head size 64, in bytes from its start.
template <int kFeatures, bool kMap>
struct BackwardMemory {
  static constexpr int kTile = kWalkTokens * kHead * 2, kFeatureTile = kWalkTokens * kFeatures * 2;
  static constexpr int kInputTile = kMap ? kTile : kFeatureTile, kMapTile = kMap ? kFeatureTile : 0;
  // Tiles of each tensor. Inputs of the map are wanted two chunks before the rest, and their sums
  // come last.
  static constexpr int kInputs = kFeatures == 32 ? 5 : 3, kValues = kFeatures == 32 ? 4 : 3;
  static constexpr int kQ = 0;  // later d q
  static constexpr int kK = kQ + kInputs * kInputTile;
  static constexpr int kV = kK + kInputs * kInputTile;  // later d v
  static constexpr int kGradO = kV + kValues * kTile;   // later d k
  static constexpr int kWeight = kGradO + kValues * kTile;
  static constexpr int kFeatureTiles =
      kFeatures == 32 ? 3 : 2;  // features of keys are made so many chunks, less one, ahead
  // Of what passes from role to role, two: a role may be a chunk ahead of the next one.
  static constexpr int kPhiK = kWeight + (kMap ? kFeatures * kHead * 2 : 0);
  static constexpr int kScaledPhiQ = kPhiK + kFeatureTiles * kMapTile;  // R = phi(q) / denominator
  static constexpr int kState = kScaledPhiQ + 2 * kFeatureTile;
  static constexpr int kStateStride = round_up(kRecordBytes<kHead, kFeatures>, 1024);
  static constexpr int kGradState = kState + 2 * kStateStride,
                       kGradStateStride = 4 * kFeatures * kHead;  // dS, high and low halves
  // One of each.
  static constexpr int kGradYQ = kGradState + 2 * kGradStateStride;
  static constexpr int kGradYK = kGradYQ + kMapTile;
  static constexpr int kBias = kGradYK + kMapTile;
  static constexpr int kE = kBias + 4 * kFeatures;  // two
  static constexpr int kDz = kE + 8 * kWalkTokens;  // two
  static constexpr int kBarriers = kDz + 8 * kFeatures;

  // Barriers. Of every tile: it has been loaded; it may be loaded again, after what lies there now
  // has been stored.
  static constexpr Ring kLoadedQ{kBarriers, kInputs}, kLoadedK{kLoadedQ.end(), kInputs},
      kLoadedV{kLoadedK.end(), kValues}, kLoadedGradO{kLoadedV.end(), kValues};
  static constexpr Ring kDoneQ{kLoadedGradO.end(), kInputs}, kDoneK{kDoneQ.end(), kInputs},
      kDoneV{kDoneK.end(), kValues}, kDoneGradO{kDoneV.end(), kValues};
  // Of what passes from role to role: it is there for its readers; they are done with it.
  static constexpr Ring kStateReady{kDoneGradO.end(), 2}, kStateDone{kStateReady.end(), 2};
  static constexpr Ring kRowsReady{kStateDone.end(), 2}, kRowsDone{kRowsReady.end(), 2};  // R, e
  static constexpr Ring kPhiKReady{kRowsDone.end(), kFeatureTiles},
      kPhiKDone{kPhiKReady.end(), kFeatureTiles};
  static constexpr Ring kGradStateReady{kPhiKDone.end(), 2},
      kGradStateDone{kGradStateReady.end(), 2};
  static constexpr Ring kGradOSummed{kGradStateDone.end(), 2};
  static constexpr Ring kGradYQReady{kGradOSummed.end(), 1}, kGradYQDone{kGradYQReady.end(), 1};
  static constexpr Ring kGradYKReady{kGradYQDone.end(), 1}, kGradYKDone{kGradYKReady.end(), 1};
  static constexpr Ring kMapReady{kGradYKDone.end(), 1};  // W and b
  static constexpr int kBytes = kMapReady.end() + 1024;
  static_assert(kBytes <= 227 * 1024);
};

/// A block of threads of causal_backward_kernel for head size 64: chunks of 64 tokens, and a
/// warpgroup for each part of the work, all of them at different places of the walk. They wait for
/// each other at barriers in shared memory only.
template <int kFeatures, bool kMap, BackwardPart kPart>
class BackwardBlock {
 public:
  __device__ __forceinline__ BackwardBlock(const CausalArguments& arguments,
                                           const TensorMaps& tensor_maps,
                                           unsigned char* shared)
      : a(arguments), maps(tensor_maps), memory(shared) {}

  /// Of this thread's warp.
  __device__ __forceinline__ int warpgroup() const { return warp >> 2; }

  /// By one thread, before everything else.
  __device__ __forceinline__ void init_barriers() const {
    constexpr int kBoth = kPart == BackwardPart::kAll
                              ? 8
                              : 4;  // warps of the rows and of the columns, or of the only ones
    const auto of_all = [&](int count, int barrier, int arrivals) {
      for (int i = 0; i < count; ++i) init_barrier(base + barrier + 8 * i, arrivals);
    };
    of_all(2 * (kInputs + kValues), Memory::kLoadedQ.at, 1);
    of_all(kInputs, Memory::kDoneQ.at, 4);
    of_all(kInputs, Memory::kDoneK.at, kMap ? 4 : kBoth);
    of_all(2 * kValues, Memory::kDoneV.at, 4);
    of_all(2, Memory::kStateReady.at, 1);
    of_all(2, Memory::kStateDone.at, 4);
    of_all(2, Memory::kRowsReady.at, 4);
    of_all(2, Memory::kRowsDone.at, kColumnPart ? 8 : 4);
    of_all((Memory::kGradYKDone.at - Memory::kPhiKReady.at) / 8 + 1, Memory::kPhiKReady.at, 4);
    init_barrier(base + Memory::kMapReady.at, 2);
    publish_barriers();
  }

  /// The first warpgroup: the rows (phi(q), e, R, d phi(q)).
  __device__ __forceinline__ void do_rows() const {
    take_registers<160>();
    wait_for_earlier_kernels();
    if (kMap && warp == 0) {
      load_bias<kFeatures, 32>(bias, a.bias, state_head, features);
      done(Memory::kMapReady, 0);
    }
    if constexpr (kMap) wait(Memory::kMapReady, 0);
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
      uint32_t phi_q[kSteps][4];
      const Tile<kMap ? kHead : kFeatures> q_tile{input_of(turn, Memory::kQ)};  // or phi(q)
      const int first = token_of(turn), valid = valid_of(turn);
      [[maybe_unused]] float y[kFeatures / 8][4];
      const auto start_phi_q = [&] {
        wait(Memory::kLoadedQ, turn);
        if constexpr (kMap) start_map(y, q_tile);
      };
      const auto finish_phi_q = [&] {  // behind the wait for y
        if constexpr (kMap) {
          settle(y);
          activate<kFeatures>(phi_q, y, bias, a.rule.scale, low < valid, high < valid, lane);
        } else {
#pragma unroll
          for (int step = 0; step < kSteps; ++step)
            q_tile.load_a(phi_q[step], row0, 2 * step, lane);
        }
      };
      RowTerms terms;
      const auto publish_rows = [&] {
        wait_free(Memory::kRowsDone, turn);
        store_scaled_rows<kFeatures>(
            scaled_phi_q_of(turn), row0, phi_q, terms.inverse.low, terms.inverse.high, lane);
        if ((lane & 3) == 0) {
          e_of(turn)[low] = terms.e.low;
          e_of(turn)[high] = terms.e.high;
        }
        make_visible_to_wgmma();
        done(Memory::kRowsReady, turn);
      };
      if constexpr (!kRowPart) {
        start_phi_q();
        wait_products<0>();
        finish_phi_q();
        terms.inverse = {1.0F / next.denominator.low, 1.0F / next.denominator.high};
        terms.e = next.e;
        next = row_values_of(turn + 1);
        publish_rows();
        done(Memory::kDoneQ, turn);
        continue;
      }

      const Tile<kHead> v_tile{value_of(turn, Memory::kV)},
          grad_o_tile{value_of(turn, Memory::kGradO)};
      const Tile<kFeatures> phi_k = phi_k_of(turn), s_centred{base + state_at(turn)};
      const Tile<kHead> mean{s_centred.base +
                             2 * kFeatures * kHead};  // of the values so far, high and low halves
      const float* const z =
          reinterpret_cast<const float*>(memory + state_at(turn) + kRecordZ<kHead, kFeatures>);
      float p[8][4], dp[8][4], dphi[kFeatures / 8][4], of_mean[1][4];
      start_phi_q();
      wait(Memory::kLoadedGradO, turn);
      wait(Memory::kLoadedV, turn);
      wait(Memory::kStateReady, turn);
      begin_products();
#pragma unroll
      for (int step = 0; step < kHead / 16; ++step)
        product<Major::kK, Major::kK>(dp,
                                      operand<Major::kK>(grad_o_tile, 0, step),
                                      operand<Major::kK>(v_tile, 0, step),
                                      step > 0);
#pragma unroll
      for (int step = 0; step < kHead / 16; ++step) {
        product<Major::kK, Major::kMN>(dphi,
                                       operand<Major::kK>(grad_o_tile, 0, step),
                                       operand<Major::kMN>(s_centred, 0, step),
                                       step > 0);
        product<Major::kK, Major::kK>(of_mean,
                                      operand<Major::kK>(grad_o_tile, 0, step),
                                      operand<Major::kK>(mean, 0, step),
                                      step > 0);
      }
      commit_products();
      wait_products<1>();
      finish_phi_q();
      if constexpr (kMap) {
        wait(Memory::kPhiKReady, turn);
      } else {
        wait(Memory::kLoadedK, turn);
      }
      begin_products();
#pragma unroll
      for (int step = 0; step < kSteps; ++step)
        product<Major::kK>(p, phi_q[step], operand<Major::kK>(phi_k, 0, step), step > 0);
      commit_products();
      OfRows before;  // of the denominator, what comes from before the chunk
      add_dots<kFeatures>(before, phi_q, z, lane);
      wait_products<0>();
      settle(dp);
      settle(dphi);
      settle(of_mean);
      settle(p);
      if constexpr (!kColumnPart) done(Memory::kDoneV, turn);
      // d o . m, m the mean of the values so far: in columns 0 and 1.
      const OfRows mean_grad{__shfl_sync(0xffffffffu, of_mean[0][0] + of_mean[0][1], lane & ~3),
                             __shfl_sync(0xffffffffu, of_mean[0][2] + of_mean[0][3], lane & ~3)};
      terms.add_seen(p, dp, low, lane);
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
      done(Memory::kStateDone,
           turn);  // not before the last z is in its register, wherefore the products waited
      if constexpr (kMap) {
        done(Memory::kPhiKDone, turn);
        uint32_t grad_y[kSteps][4];
        grad_map_of_rows<kFeatures>(
            grad_y,
            phi_q,
            dphi,
            {terms.inverse.low * a.rule.scale, terms.inverse.high * a.rule.scale});
        wait_free(Memory::kGradYQDone, turn);
        store_rows<kFeatures>(grad_y_q, row0, grad_y, lane);
        make_visible_to_wgmma();
        done(Memory::kGradYQReady, turn);
      } else {
        done(Memory::kDoneK, turn);
        stage_rows<kFeatures>(q_tile, row0, dphi, terms.inverse.low, terms.inverse.high, lane);
        make_visible_to_wgmma();
        done(Memory::kDoneQ, turn);
      }
    }
  }

  /// The second: the columns (phi(k), d k, d v).
  __device__ __forceinline__ void do_columns() const {
    take_registers<168>();
    wait_for_earlier_kernels();
    if constexpr (kMap) wait(Memory::kMapReady, 0);
    const PairMasks masks(/*not_after=*/false, warp & 3, lane);
    const auto make_phi_k = [&](int turn) {  // for the rows, too
      if constexpr (kMap) {
        if (turn >= turns) return;
        wait(Memory::kLoadedK, turn);
        const int valid = valid_of(turn);
        float y[kFeatures / 8][4];
        start_map(y, Tile<kHead>{input_of(turn, Memory::kK)});
        wait_products<0>();
        settle(y);
        uint32_t phi[kSteps][4];
        activate<kFeatures>(phi, y, bias, 1.0F, low < valid, high < valid, lane);
        if constexpr (kRowPart) wait_free(Memory::kPhiKDone, turn);
        store_rows<kFeatures>(phi_k_of(turn), row0, phi, lane);
        make_visible_to_wgmma();
        done(Memory::kPhiKReady, turn);
        if constexpr (!kColumnPart) done(Memory::kDoneK, turn);
      }
    };
    for (int turn = 1 - kPhis; turn < turns; ++turn) {
      make_phi_k(turn + kPhis - 1);
      if (kColumnPart && turn >= 0) {
        const Tile<kHead> v_tile{value_of(turn, Memory::kV)},
            grad_o_tile{value_of(turn, Memory::kGradO)};
        const Tile<kFeatures> scaled_phi_q = scaled_phi_q_of(turn);
        const Tile<kFeatures> ds_hi = ds_hi_of(turn), ds_lo = ds_lo_of(turn);
        const float *const e_shared = e_of(turn), *const dz_shared = dz_of(turn);
        if constexpr (!kMap) wait(Memory::kLoadedK, turn);
        uint32_t own_phi_k[kSteps][4];
#pragma unroll
        for (int step = 0; step < kSteps; ++step)
          phi_k_of(turn).load_a(own_phi_k[step], row0, 2 * step, lane);
        float p[8][4], dp[8][4], dphi[kFeatures / 8][4];
        wait(Memory::kLoadedV, turn);
        wait(Memory::kLoadedGradO, turn);
        begin_products();
#pragma unroll
        for (int step = 0; step < kHead / 16; ++step)
          product<Major::kK, Major::kK>(dp,
                                        operand<Major::kK>(v_tile, 0, step),
                                        operand<Major::kK>(grad_o_tile, 0, step),
                                        step > 0);
        wait(Memory::kGradStateReady, turn);
#pragma unroll
        for (int step = 0; step < kHead / 16; ++step) {
          product<Major::kK, Major::kMN>(dphi,
                                         operand<Major::kK>(v_tile, 0, step),
                                         operand<Major::kMN>(ds_hi, 0, step),
                                         step > 0);
          product<Major::kK, Major::kMN>(
              dphi, operand<Major::kK>(v_tile, 0, step), operand<Major::kMN>(ds_lo, 0, step), true);
        }
        wait(Memory::kRowsReady, turn);
#pragma unroll
        for (int step = 0; step < kSteps; ++step)
          product<Major::kK>(
              p, own_phi_k[step], operand<Major::kK>(scaled_phi_q, 0, step), step > 0);
        commit_products();
        wait_products<0>();
        settle(p);
        settle(dp);
        settle(dphi);
        if constexpr (!kMap) done(Memory::kDoneK, turn);
        uint32_t weights[4][4], grad_weights[4][4];
        pack_columns(weights, grad_weights, p, dp, e_shared, lane);
        masks.clear(weights);
        masks.clear(grad_weights);
        float dv[8][4];
        begin_products();
#pragma unroll
        for (int step = 0; step < 4; ++step)
          product<Major::kMN>(
              dphi, grad_weights[step], operand<Major::kMN>(scaled_phi_q, 0, step), true);
        commit_products();
#pragma unroll
        for (int step = 0; step < kSteps; ++step) {
          product<Major::kK>(dv, own_phi_k[step], operand<Major::kK>(ds_hi, 0, step), step > 0);
          product<Major::kK>(dv, own_phi_k[step], operand<Major::kK>(ds_lo, 0, step), true);
        }
#pragma unroll
        for (int step = 0; step < 4; ++step)
          product<Major::kMN>(dv, weights[step], operand<Major::kMN>(grad_o_tile, 0, step), true);
        commit_products();
        wait_products<1>();
        settle(dphi);
        done(Memory::kRowsDone, turn);
        uint32_t grad_y[kSteps][4];
        grad_map_of_columns<kFeatures, kMap>(grad_y, own_phi_k, dphi, dz_shared, lane);
        if constexpr (kMap) {
          wait_free(Memory::kGradYKDone, turn);
          store_rows<kFeatures>(grad_y_k, row0, grad_y, lane);
        }
        make_visible_to_wgmma();  // also: dz has been read, not only asked for
        if constexpr (kMap) done(Memory::kGradYKReady, turn);
        float grad[8][4];
        if constexpr (kMap) {
          begin_products();
#pragma unroll
          for (int step = 0; step < kSteps; ++step)
            product<Major::kMN>(grad, grad_y[step], operand<Major::kMN>(weight, 0, step), step > 0);
          commit_products();
          wait_products<1>();
        } else {
          wait_products<0>();
        }
        settle(dv);
        // d k goes where d o was. Before the next line: behind it, the sums might go on until their
        // next but one arrival.
        wait(Memory::kGradOSummed, turn);
        done(Memory::kGradStateDone, turn);
        sync_warpgroup(2);  // everybody is done with v and d o
        stage_rows<kHead>(v_tile, row0, dv, 1.0F, 1.0F, lane);
        make_visible_to_wgmma();
        done(Memory::kDoneV, turn);
        if constexpr (kMap) {
          wait_products<0>();
          settle(grad);
          stage_rows<kHead>(grad_o_tile, row0, grad, 1.0F, 1.0F, lane);
        } else {
          store_rows<kFeatures>(
              Tile<kFeatures>{value_of(turn, Memory::kGradO)}, row0, grad_y, lane);
        }
        make_visible_to_wgmma();
        done(Memory::kDoneGradO, turn);
      }
    }
  }

  /// The third: the sums and what the rows have no time for (dS, dz, dW, d b, d q).
  __device__ __forceinline__ void do_sums() const {
    take_registers<160>();
    wait_for_earlier_kernels();
    if constexpr (kMap) wait(Memory::kMapReady, 0);
    float ds[kFeatures / 8][4] = {}, dw[kFeatures / 8][4] = {};  // dS^T and dW^T
    float sums[kFeatures / 8][4] =
        {};  // of the first warp: dz in rows 0 and 1, d b in rows 2 and 3
    const bool holds_sums = (warp & 3) == 0;
    if constexpr (kColumnPart) {
      const StartState from =
          start_state<kHead>(a,
                             head % heads_per_state == 0 ? a.grad_final_s : nullptr,
                             a.grad_final_z,
                             item,
                             segment,
                             batch,
                             state_head);
      if (from.s != nullptr) {
#pragma unroll
        for (int n = 0; n < kFeatures / 8; ++n)
#pragma unroll
          for (int i = 0; i < 4; ++i) {
            const int feature = n * 8 + 2 * (lane & 3) + (i & 1);
            if (feature >= features) continue;
            ds[n][i] = from.s[feature * kHead + (i < 2 ? low : high)];
            if (holds_sums && lane < 4 && i < 2) sums[n][i] = from.z[feature];
          }
      }
    }
    /// Adds a tile's rows, weighted: weights[step] has the weights of rows from 16 step and from 16
    /// step + 8 on.
    const auto add_rows = [&](const Tile<kFeatures>& tile, const uint32_t(&weights)[4][4]) {
#pragma unroll
      for (int step = 0; step < 4; ++step)
        product<Major::kMN>(sums, weights[step], operand<Major::kMN>(tile, 0, step), true);
    };
    /// Rows `row` and row + 1 of the sums, added up.
    const auto share_sums = [&](int row, float* to) {
#pragma unroll
      for (int n = 0; n < kFeatures / 8; ++n) {
        const float2 both{sums[n][0] + __shfl_down_sync(0xffffffffu, sums[n][0], 4),
                          sums[n][1] + __shfl_down_sync(0xffffffffu, sums[n][1], 4)};
        if (holds_sums && lane / 4 == row)
          *reinterpret_cast<float2*>(to + 8 * n + 2 * (lane & 3)) = both;
      }
    };
    const auto publish_state = [&](int turn) {
      if (!kColumnPart || turn >= turns) return;
      wait_free(Memory::kGradStateDone, turn);
      store_split_rows(ds_hi_of(turn), ds_lo_of(turn), row0, ds, lane);
      share_sums(0, dz_of(turn));
      make_visible_to_wgmma();
      done(Memory::kGradStateReady, turn);
    };
    publish_state(0);
    for (int turn = 0; turn < turns; ++turn) {
      const Tile<kFeatures> scaled_phi_q = scaled_phi_q_of(turn);
      const Tile<kHead> grad_o_tile{value_of(turn, Memory::kGradO)};
      const float* const e_shared = e_of(turn);
      wait(Memory::kLoadedGradO, turn);
      wait(Memory::kRowsReady, turn);
      uint32_t e_rows[4][4] = {};  // e, high and low halves
      if (holds_sums && lane < 8) {
#pragma unroll
        for (int step = 0; step < 4; ++step)
#pragma unroll
          for (int i = 0; i < 2; ++i) {
            const float2 pair =
                *reinterpret_cast<const float2*>(e_shared + 16 * step + 8 * i + 2 * (lane & 3));
            uint32_t hi, lo;
            split(pair.x, pair.y, hi, lo);
            e_rows[step][2 * i] = lane < 4 ? hi : lo;
          }
      }
      begin_products();
#pragma unroll
      for (int step = 0; step < 4; ++step)
        product<Major::kMN, Major::kMN>(ds,
                                        operand<Major::kMN>(grad_o_tile, 0, step),
                                        operand<Major::kMN>(scaled_phi_q, 0, step),
                                        true);
      add_rows(scaled_phi_q, e_rows);
      commit_products();
      wait_products<0>();
      settle(ds);
      settle(sums);
      done(Memory::kRowsDone, turn);
      if constexpr (kColumnPart) {
        done(Memory::kGradOSummed, turn);
      } else {
        done(Memory::kDoneGradO, turn);
      }
      publish_state(turn + 1);
      const auto start_map_sums =
          [&](const Tile<kFeatures>& grad_y, int input, float weight_of_rows) {
            uint32_t hi, lo;
            split(weight_of_rows, weight_of_rows, hi, lo);
            const uint32_t own = holds_sums && lane / 8 == 1 ? (lane & 4 ? lo : hi) : 0u;
            const uint32_t rows[4][4] = {
                {own, 0, own, 0}, {own, 0, own, 0}, {own, 0, own, 0}, {own, 0, own, 0}};
            begin_products();
#pragma unroll
            for (int step = 0; step < 4; ++step)
              product<Major::kMN, Major::kMN>(
                  dw,
                  operand<Major::kMN>(Tile<kHead>{input_of(turn, input)}, 0, step),
                  operand<Major::kMN>(grad_y, 0, step),
                  true);
            add_rows(grad_y, rows);
          };
      const auto finish_map_sums = [&] {
        commit_products();
        wait_products<0>();
        settle(dw);
        settle(sums);
      };
      if constexpr (kMap && kRowPart) {
        wait(Memory::kLoadedQ, turn);
        wait(Memory::kGradYQReady, turn);
        float grad[8][4];
        start_map_sums(grad_y_q, Memory::kQ, 1.0F / a.rule.scale);
        if constexpr (kFeatures > 32) {  // all at once, registers would not suffice (C7512)
          finish_map_sums();
          begin_products();
        }
#pragma unroll
        for (int step = 0; step < kSteps; ++step)
          product<Major::kK, Major::kMN>(grad,
                                         operand<Major::kK>(grad_y_q, 0, step),
                                         operand<Major::kMN>(weight, 0, step),
                                         step > 0);
        finish_map_sums();
        settle(grad);
        done(Memory::kGradYQDone, turn);
        sync_warpgroup(3);  // everybody is done with q
        stage_rows<kHead>(Tile<kHead>{input_of(turn, Memory::kQ)}, row0, grad, 1.0F, 1.0F, lane);
        make_visible_to_wgmma();
        done(Memory::kDoneQ, turn);
      }
      if constexpr (kMap && kColumnPart) {
        wait(Memory::kLoadedK, turn);
        wait(Memory::kGradYKReady, turn);
        start_map_sums(grad_y_k, Memory::kK, 1.0F);
        finish_map_sums();
        done(Memory::kGradYKDone, turn);
        done(Memory::kDoneK, turn);
      }
    }

    if constexpr (kColumnPart) wait(Memory::kGradStateDone, turns - 1);
    float* const shared_sums = dz_of(0);  // nobody reads it any more
    const auto write_transposed = [&](const float(&value)[kFeatures / 8][4], float* to) {
#pragma unroll
      for (int n = 0; n < kFeatures / 8; ++n)
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          const int feature = n * 8 + 2 * (lane & 3) + (i & 1);
          if (feature < features) to[feature * kHead + (i < 2 ? low : high)] = value[n][i];
        }
    };
    const int feature = tid & 127;
    float *to_s = nullptr, *to_z = nullptr;
    if constexpr (kPart == BackwardPart::kRows) {
      to_s = a.sums + (int64_t{item} * a.plan.segments + segment) * a.plan.sums_floats;
      to_z = to_s + features * kHead;
    } else if (a.grad_initial_s != nullptr && segment == 0) {
      to_s = a.grad_initial_s + int64_t{item} * features * kHead;
      to_z = a.grad_initial_z + int64_t{item} * features;
    }
    if (to_s != nullptr) {
      write_transposed(ds, to_s);
      share_sums(0, shared_sums);
      sync_warpgroup(3);
      if (feature < features) to_z[feature] = shared_sums[feature];
      sync_warpgroup(3);
    }
    if constexpr (kMap) {
      constexpr int kLaunches = kPart == BackwardPart::kAll ? 1 : 2,
                    kLaunch = kPart == BackwardPart::kColumns ? 1 : 0;
      float* const part =
          a.grad_weight + ((int64_t{item} * a.plan.segments + segment) * kLaunches + kLaunch) *
                              (kHead + 2) * features;
      write_transposed(dw, part);
      share_sums(2, shared_sums);
      sync_warpgroup(3);
      if (feature < features) {
        part[features * kHead + feature] = shared_sums[feature];
        part[features * kHead + features + feature] = 0.0F;
      }
    }
  }

  /// The fourth: a tile is loaded, served, is overwritten by a gradient, stored, and loaded again.
  __device__ __forceinline__ void move_tiles() const {
    give_registers<24>();
    // One warp for each tensor's tiles; that of the keys brings the states too. What is loaded next
    // is brought to the L2 cache before.
    const auto bring_state = [&](int turn) {  // by a warp
      if (turn >= turns) return;
      const unsigned char* const record =
          a.states +
          (int64_t{item} * a.plan.chunks + chunk_end - 1 - turn) * a.plan.state_record_bytes;
      const uint32_t to = base + state_at(turn), barrier = base + Memory::kStateReady.at +
                                                           8 * (turn % Memory::kStateReady.count);
      if (!has_state(turn)) {
        for (int i = lane; i < kRecord / 16; i += 32)
          store_shared_16(to + 16 * i, uint4{0, 0, 0, 0});
        make_visible_to_wgmma();
        arrive(barrier, lane);
      } else if (lane == 0) {
        expect_bytes(barrier, kRecord);
        load_bytes(to, record, kRecord, barrier);
      }
    };
    const int mover = warp & 3;
    const auto own = [&](auto of_q, auto of_k, auto of_v, auto of_grad_o) {
      return mover == 0 ? of_q : mover == 1 ? of_k : mover == 2 ? of_v : of_grad_o;
    };
    const CUtensorMap* const none = nullptr;
    const CUtensorMap* const from = own(&maps.q, &maps.k, &maps.v, &maps.grad_o);
    const CUtensorMap* const gradient = own(kRowPart ? &maps.grad_q : none,
                                            none,
                                            kColumnPart ? &maps.grad_v : none,
                                            kColumnPart ? &maps.grad_k : none);
    const int of_head = own(head, key_head, value_head, head),
              count = mover < 2 ? kInputs : kValues,
              bytes = mover < 2 ? Memory::kInputTile : Memory::kTile;
    const uint32_t tiles = base + own(Memory::kQ, Memory::kK, Memory::kV, Memory::kGradO);
    const uint32_t loaded =
        base +
        own(Memory::kLoadedQ.at, Memory::kLoadedK.at, Memory::kLoadedV.at, Memory::kLoadedGradO.at);
    const uint32_t free =
        base + own(Memory::kDoneQ.at, Memory::kDoneK.at, Memory::kDoneV.at, Memory::kDoneGradO.at);
    const bool brings_states = kRowPart && mover == 1;
    const auto load = [&](int turn, int place) {  // by one thread
      if (turn >= turns) return;
      expect_bytes(loaded + 8 * place, bytes);
      load_tile(
          tiles + place * bytes, *from, loaded + 8 * place, 0, token_of(turn), of_head, batch);
    };
    if (lane == 0) prefetch_map(*from);
    wait_for_earlier_kernels();
    if (lane == 0) {
      if (kMap && mover == 0) {
        expect_bytes(base + Memory::kMapReady.at, kFeatures * kHead * 2);
        load_tile(weight.base, maps.weight, base + Memory::kMapReady.at, 0, 0, state_head, 0);
      }
      for (int turn = 0; turn < count; ++turn) load(turn, turn);
    }
    __syncwarp();
    if (brings_states) {
      bring_state(0);
      bring_state(1);
    }
    for (int turn = 0, place = 0, phase = 0; turn < turns; ++turn) {
      if (lane == 0 && turn + count < turns)
        prefetch_tile(*from, 0, token_of(turn + count), of_head, batch);
      if (brings_states) {
        wait(Memory::kStateDone, turn);
        bring_state(turn + 2);
      }
      wait_barrier(free + 8 * place, phase);
      if (lane == 0) {
        if (gradient != nullptr) {
          store_tile(*gradient, tiles + place * bytes, 0, token_of(turn), head, batch);
          commit_stores();
          wait_stores_read();
        }
        load(turn + count, place);
      }
      __syncwarp();
      if (++place == count) {
        place = 0;
        phase ^= 1;
      }
    }
  }

 private:
  using Memory = BackwardMemory<kFeatures, kMap>;
  static constexpr int kSteps = kFeatures / 16, kInputs = Memory::kInputs,
                       kValues = Memory::kValues, kPhis = Memory::kFeatureTiles;
  static constexpr int kRecord = kRecordBytes<kHead, kFeatures>;
  static constexpr bool kRowPart = kPart != BackwardPart::kColumns,
                        kColumnPart = kPart != BackwardPart::kRows;

  // A turn's has come; the one before it in the same place may go; this warp is done with it. A
  // barrier tells two phases apart, so nobody may arrive twice at one before everybody has waited
  // there once.
  __device__ __forceinline__ void wait(Ring ring, int turn) const {
    wait_barrier(base + ring.at + 8 * (turn % ring.count), turn / ring.count & 1);
  }
  __device__ __forceinline__ void wait_free(Ring ring, int turn) const {
    wait_barrier(base + ring.at + 8 * (turn % ring.count), (turn / ring.count & 1) ^ 1);
  }
  __device__ __forceinline__ void done(Ring ring, int turn) const {
    arrive(base + ring.at + 8 * (turn % ring.count), lane);
  }

  // Where a turn's things lie.
  __device__ __forceinline__ uint32_t input_of(int turn, int at) const {
    return base + at + turn % kInputs * Memory::kInputTile;
  }
  __device__ __forceinline__ uint32_t value_of(int turn, int at) const {
    return base + at + turn % kValues * Memory::kTile;
  }
  __device__ __forceinline__ Tile<kFeatures> phi_k_of(int turn) const {
    return {kMap ? base + Memory::kPhiK + turn % kPhis * Memory::kMapTile
                 : input_of(turn, Memory::kK)};
  }
  __device__ __forceinline__ Tile<kFeatures> scaled_phi_q_of(int turn) const {
    return {base + Memory::kScaledPhiQ + turn % 2 * Memory::kFeatureTile};
  }
  __device__ __forceinline__ float* e_of(int turn) const {
    return reinterpret_cast<float*>(memory + Memory::kE) + turn % 2 * kWalkTokens;
  }
  __device__ __forceinline__ int state_at(int turn) const {
    return Memory::kState + turn % 2 * Memory::kStateStride;
  }
  __device__ __forceinline__ Tile<kFeatures> ds_hi_of(int turn) const {
    return {base + Memory::kGradState + turn % 2 * Memory::kGradStateStride};
  }
  __device__ __forceinline__ Tile<kFeatures> ds_lo_of(int turn) const {
    return {ds_hi_of(turn).base + Memory::kGradStateStride / 2};
  }
  __device__ __forceinline__ float* dz_of(int turn) const {
    return reinterpret_cast<float*>(memory + Memory::kDz) + turn % 2 * kFeatures;
  }
  __device__ __forceinline__ int token_of(int turn) const {
    return (chunk_end - 1 - turn) * kWalkTokens;
  }
  __device__ __forceinline__ int valid_of(int turn) const {
    return min(kWalkTokens, shape.length - token_of(turn));
  }
  __device__ __forceinline__ bool has_state(int turn) const {
    return turn + 1 < turns || chunk_begin > 0 || a.initial_s != nullptr;
  }

  /// y = x W^T, of the own rows.
  __device__ __forceinline__ void start_map(float (&y)[kFeatures / 8][4],
                                            const Tile<kHead>& x) const {
    begin_products();
#pragma unroll
    for (int step = 0; step < kHead / 16; ++step)
      product<Major::kK, Major::kK>(
          y, operand<Major::kK>(x, 0, step), operand<Major::kK>(weight, 0, step), step > 0);
    commit_products();
  }

  const CausalArguments& a;
  const TensorMaps& maps;
  unsigned char* const memory;
  const uint32_t base = shared_address(memory);
  const Tile<kHead> weight{base + Memory::kWeight};
  const Tile<kFeatures> grad_y_q{base + Memory::kGradYQ}, grad_y_k{base + Memory::kGradYK};
  float* const bias = reinterpret_cast<float*>(memory + Memory::kBias);

  const Shape& shape = a.shape;
  const int item = blockIdx.x, segment = blockIdx.y;
  const int batch = item / shape.query_heads, head = item % shape.query_heads;
  const int heads_per_state = shape.query_heads / shape.state_heads,
            state_head = head / heads_per_state;
  const int tid = threadIdx.x, lane = tid & 31,
            warp = __shfl_sync(0xffffffffu, tid >> 5, 0);  // uniform, and known to be
  const int row0 = (warp & 3) * 16, low = row0 + lane / 4, high = low + 8;
  const int features = shape.feature_size;
  const int chunk_begin = segment * a.plan.chunks_per_segment;
  const int chunk_end = min(chunk_begin + a.plan.chunks_per_segment, a.plan.chunks);
  const int turns = chunk_end - chunk_begin;  // turn 0 is the last chunk
  const int key_head = state_head / (shape.state_heads / shape.key_heads);
  const int value_head = state_head / (shape.state_heads / shape.value_heads);
};

template <int kFeatures, bool kMap, BackwardPart kPart>
__global__ void __launch_bounds__(kBackwardThreads, 1)
    causal_backward_kernel(const __grid_constant__ CausalArguments a,
                           const __grid_constant__ TensorMaps maps) {
#ifdef __CUDA_ARCH_FEAT_SM90_ALL
  extern __shared__ unsigned char unaligned_memory[];
  const BackwardBlock<kFeatures, kMap, kPart> block(
      a, maps, unaligned_memory + (-shared_address(unaligned_memory) & 1023));
  if (threadIdx.x == 0) block.init_barriers();
  __syncthreads();
  if (block.warpgroup() == 0) {
    block.do_rows();
  } else if (block.warpgroup() == 1) {
    block.do_columns();
  } else if (block.warpgroup() == 2) {
    block.do_sums();
  } else {
    block.move_tiles();
  }
#else
  __trap();
#endif
}

template <int kFeatures, bool kMap>
cudaError_t launch_backward(const CausalArguments& a, cudaStream_t stream) {
  return launch_backward_kernels(/*early=*/true,
                                 &causal_backward_kernel<kFeatures, kMap, BackwardPart::kAll>,
                                 &causal_backward_kernel<kFeatures, kMap, BackwardPart::kRows>,
                                 &causal_backward_kernel<kFeatures, kMap, BackwardPart::kColumns>,
                                 kBackwardThreads,
                                 BackwardMemory<kFeatures, kMap>::kBytes,
                                 a,
                                 stream);
}

}  // namespace t2r::kernels::cuda::sm90
