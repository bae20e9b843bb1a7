#pragma once

// Symbols: kernel.cuh. Rows of accumulators are queries, columns keys or features.

#include "model/kernels/cuda/sm90/backward/block.cuh"

namespace t2r::kernels::cuda::sm90 {

/// The first warpgroup of head size 128: features of keys and queries, then of every row the
/// denominator and e, R, and d q.
template <int kFeatures, bool kMap, BackwardPart kPart>
class RowsConsumer<128, kFeatures, kMap, kPart> {
 public:
  using Block = BackwardBlock<128, kFeatures, kMap, kPart>;
  __device__ __forceinline__ explicit RowsConsumer(const Block& owner) : block(owner) {}

  __device__ __forceinline__ void run() const {
    take_registers<144>();
    const SavedRows saved = block.saved_rows();
    RowValues next(nullptr, nullptr, 0, 0, 0);
    const PairMasks masks(/*not_after=*/true, block.warp & 3, block.lane);
    if constexpr (!kRowPart) next = block.row_values_of(saved, 0);

    for (int turn = 0; turn < block.turns; ++turn) {
      uint32_t phi_q[kSteps][4];
      OfRows mean_grad;  // d o . m, m the mean of the values so far
      make_features(turn, phi_q, mean_grad);
      RowTerms terms;
      if constexpr (kRowPart) {
        Accumulators sums;
        start_products(turn, phi_q, sums);
        finish_terms(turn, phi_q, sums, mean_grad, terms);
        if constexpr (kPart == BackwardPart::kRows)
          terms.save(saved.denominators,
                     saved.es,
                     block.token_of(turn),
                     block.low,
                     block.valid_of(turn),
                     block.a.rule,
                     block.lane);
        block.publish_rows(turn, phi_q, terms);  // the columns wait for it
        finish_grad_phi(turn, sums, mean_grad, terms, masks);
        store_grad_q(turn, phi_q, sums, terms);
      } else {
        terms.inverse = {1.0F / next.denominator.low, 1.0F / next.denominator.high};
        terms.e = next.e;
        next = block.row_values_of(saved, turn + 1);
        block.publish_rows(turn, phi_q, terms);
        block.release(Pipelines::kQ, turn);
      }
    }
  }

 private:
  using Memory = typename Block::Memory;
  using Pipelines = typename Block::Pipelines;
  static constexpr int kSteps = Block::kSteps;
  static constexpr bool kRowPart = Block::kRowPart, kColumnPart = Block::kColumnPart;

  struct Accumulators {
    float p[8][4], dp[8][4], dphi[kFeatures / 8][4];
  };

  /// phi(k) for everybody and phi(q) of the own rows; meanwhile d o . m.
  __device__ __forceinline__ void make_features(int turn,
                                                uint32_t (&phi_q)[kSteps][4],
                                                OfRows& mean_grad) const {
    block.wait_full(Pipelines::kK, turn);
    block.wait_full(Pipelines::kQ, turn);
    if constexpr (kMap) {
      const int low = block.low, high = block.high, valid = block.valid_of(turn);
      float y_k[kFeatures / 8][4], y_q[kFeatures / 8][4];
      begin_products();
      multiply_heads<128>(y_k, block.input_of(turn, Memory::kK), block.weight());
      commit_products();
      multiply_heads<128>(y_q, block.input_of(turn, Memory::kQ), block.weight());
      commit_products();
      if constexpr (kRowPart) meet_mean(turn, mean_grad);
      wait_products<1>();
      settle(y_k);
      uint32_t own_phi_k[kSteps][4];
      activate<kFeatures>(own_phi_k, y_k, block.bias, 1.0F, low < valid, high < valid, block.lane);
      block.wait_empty(Pipelines::kPhiK, turn);
      store_rows<kFeatures>(block.phi_k_of(turn), block.row0, own_phi_k, block.lane);
      make_visible_to_wgmma();
      wait_products<0>();
      settle(y_q);
      if constexpr (!kColumnPart) block.release(Pipelines::kK, turn);
      activate<kFeatures>(
          phi_q, y_q, block.bias, block.a.rule.scale, low < valid, high < valid, block.lane);
      if constexpr (kRowPart) sync_warpgroup(1);  // phi(k) of all rows
    } else {
      const Tile<kFeatures> given_phi_q{block.input_at(turn, Memory::kQ)};
#pragma unroll
      for (int step = 0; step < kSteps; ++step)
        given_phi_q.load_a(phi_q[step], block.row0, 2 * step, block.lane);
      if constexpr (kRowPart) meet_mean(turn, mean_grad);
    }
  }

  __device__ __forceinline__ void meet_mean(int turn, OfRows& mean_grad) const {
    const int lane = block.lane;
    const float* const value_mean = block.z_of(turn) + kFeatures;
    block.wait_full(Pipelines::kGradO, turn);
    block.wait_full(Pipelines::kState, turn);
#pragma unroll
    for (int half = 0; half < 2; ++half)
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        const Tile<kHead> grad_o = block.value_of(turn, Memory::kGradO)[half];
        // Of neighbouring rows, in different banks.
        const int unit = (lane & 3) + 4 * (i ^ (lane / 4 & 1));
        const uint4 of_low = load_shared_16(grad_o.at(block.low, unit));
        const uint4 of_high = load_shared_16(grad_o.at(block.high, unit));
        const uint32_t pairs_low[4] = {of_low.x, of_low.y, of_low.z, of_low.w},
                       pairs_high[4] = {of_high.x, of_high.y, of_high.z, of_high.w};
#pragma unroll
        for (int j = 0; j < 4; ++j) {
          const float2 mean =
              *reinterpret_cast<const float2*>(value_mean + half * kHead + 8 * unit + 2 * j);
          const float2 x_low = unpack(pairs_low[j]), x_high = unpack(pairs_high[j]);
          mean_grad.low = fmaf(x_low.x, mean.x, fmaf(x_low.y, mean.y, mean_grad.low));
          mean_grad.high = fmaf(x_high.x, mean.x, fmaf(x_high.y, mean.y, mean_grad.high));
        }
      }
    mean_grad = row_sums(mean_grad);
  }

  /// Starts p = phi(q) phi(k)^T, dp = d o v^T, and, behind them, dphi = d o (S - z m^T)^T.
  __device__ __forceinline__ void start_products(int turn,
                                                 const uint32_t (&phi_q)[kSteps][4],
                                                 Accumulators& sums) const {
    const Tile<kFeatures> phi_k = block.phi_k_of(turn),
                          s_centred{block.base + block.state_at(turn)};
    const HeadTiles grad_o = block.value_of(turn, Memory::kGradO);
    block.wait_full(Pipelines::kV, turn);
    begin_products();
#pragma unroll
    for (int step = 0; step < kSteps; ++step)
      product<Major::kK>(sums.p, phi_q[step], operand<Major::kK>(phi_k, 0, step), step > 0);
    multiply_heads<128>(sums.dp, grad_o, block.value_of(turn, Memory::kV));
    commit_products();
#pragma unroll
    for (int half = 0; half < 2; ++half)
#pragma unroll
      for (int step = 0; step < 4; ++step)
        product<Major::kK, Major::kMN>(sums.dphi,
                                       operand<Major::kK>(grad_o[half], 0, step),
                                       operand<Major::kMN>(s_centred, half * 64, step),
                                       half + step > 0);
    commit_products();
  }

  /// Denominators and e.
  __device__ __forceinline__ void finish_terms(int turn,
                                               const uint32_t (&phi_q)[kSteps][4],
                                               Accumulators& sums,
                                               const OfRows& mean_grad,
                                               RowTerms& terms) const {
    wait_products<1>();
    settle(sums.p);
    settle(sums.dp);
    if constexpr (!kColumnPart) block.release(Pipelines::kV, turn);
    terms.add_seen(sums.p, sums.dp, block.low, block.lane);
    wait_products<0>();
    settle(sums.dphi);
    OfRows before;  // of the denominator, what comes from before the chunk
    add_dots<kFeatures>(before, phi_q, block.z_of(turn), block.lane);
    terms.add_before<kFeatures>(phi_q, sums.dphi);
    terms.finish(before, mean_grad, block.a.rule);
  }

  /// d phi(q) times the denominator: dphi + (e + d o . m) z + (dp + e) phi(k).
  __device__ __forceinline__ void finish_grad_phi(int turn,
                                                  Accumulators& sums,
                                                  const OfRows& mean_grad,
                                                  const RowTerms& terms,
                                                  const PairMasks& masks) const {
    add_outer<kFeatures>(sums.dphi,
                         {terms.e.low + mean_grad.low, terms.e.high + mean_grad.high},
                         block.z_of(turn),
                         block.lane);
    uint32_t weights[4][4];
    pack_rows(weights, sums.dp, terms.e);
    masks.clear(weights);
    begin_products();
#pragma unroll
    for (int step = 0; step < 4; ++step)
      product<Major::kMN>(
          sums.dphi, weights[step], operand<Major::kMN>(block.phi_k_of(turn), 0, step), true);
    commit_products();
    wait_products<0>();
    settle(sums.dphi);
    // Not before the last z is in its register, wherefore the products waited.
    block.release(Pipelines::kState, turn);
  }

  /// Epilogue: d q, in q's place; with a map, d y of the queries for the sums.
  __device__ __forceinline__ void store_grad_q(int turn,
                                               const uint32_t (&phi_q)[kSteps][4],
                                               const Accumulators& sums,
                                               const RowTerms& terms) const {
    const int row0 = block.row0, lane = block.lane;
    if constexpr (kMap) {
      block.release(Pipelines::kPhiK, turn);
      uint32_t grad_y[kSteps][4];
      grad_map_of_rows<kFeatures>(
          grad_y,
          phi_q,
          sums.dphi,
          {terms.inverse.low * block.a.rule.scale, terms.inverse.high * block.a.rule.scale});
      float grad[2][8][4];
      begin_products();
#pragma unroll
      for (int half = 0; half < 2; ++half)
#pragma unroll
        for (int step = 0; step < kSteps; ++step)
          product<Major::kMN>(grad[half],
                              grad_y[step],
                              operand<Major::kMN>(block.weight()[half], 0, step),
                              step > 0);
      commit_products();
      store_rows<kFeatures>(block.grad_y_q, row0, grad_y, lane);
      make_visible_to_wgmma();
      block.publish(Pipelines::kGradYQ, turn);
      wait_products<0>();
      settle(grad[0]);
      settle(grad[1]);
      block.wait_released(Pipelines::kGradYQ, turn);  // and with q, where d q goes
      const HeadTiles grad_q = block.input_of(turn, Memory::kQ);
#pragma unroll
      for (int half = 0; half < 2; ++half)
        stage_rows<kHead>(grad_q[half], row0, grad[half], 1.0F, 1.0F, lane);
    } else {
      block.release(Pipelines::kK, turn);
      stage_rows<kFeatures>(Tile<kFeatures>{block.input_at(turn, Memory::kQ)},
                            row0,
                            sums.dphi,
                            terms.inverse.low,
                            terms.inverse.high,
                            lane);
    }
    make_visible_to_wgmma();
    block.release(Pipelines::kQ, turn);
  }

  const Block& block;
};

}  // namespace t2r::kernels::cuda::sm90
