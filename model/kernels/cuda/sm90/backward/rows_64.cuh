#pragma once

// Symbols: kernel.cuh. Rows of accumulators are queries, columns keys or features.

#include "model/kernels/cuda/sm90/backward/block.cuh"

namespace t2r::kernels::cuda::sm90 {

/// The first warpgroup of head size 64: of every row phi(q), the denominator and e, R, d phi(q).
template <int kFeatures, bool kMap, BackwardPart kPart>
class RowsConsumer<64, kFeatures, kMap, kPart> {
 public:
  using Block = BackwardBlock<64, kFeatures, kMap, kPart>;
  __device__ __forceinline__ explicit RowsConsumer(const Block& owner) : block(owner) {}

  __device__ __forceinline__ void run() const {
    take_registers<160>();
    wait_for_earlier_kernels();
    if (kMap && block.warp == 0) {
      load_bias<kFeatures, 32>(block.bias, block.a.bias, block.state_head, block.features);
      block.publish(Pipelines::kMapReady, 0);
    }
    if constexpr (kMap) block.wait_full(Pipelines::kMapReady, 0);
    const SavedRows saved = block.saved_rows();
    RowValues next(nullptr, nullptr, 0, 0, 0);
    const PairMasks masks(/*not_after=*/true, block.warp & 3, block.lane);
    if constexpr (!kRowPart) next = block.row_values_of(saved, 0);

    for (int turn = 0; turn < block.turns; ++turn) {
      uint32_t phi_q[kSteps][4];
      RowTerms terms;
      if constexpr (kRowPart) {
        Accumulators sums;
        start_phi_q(turn, sums);
        start_products(turn, sums);
        finish_phi_q(turn, phi_q, sums);
        const OfRows mean_grad = finish_terms(turn, phi_q, sums, terms);
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
        store_grad_phi(turn, phi_q, sums, terms);
      } else {
        Accumulators sums;
        start_phi_q(turn, sums);
        wait_products<0>();
        finish_phi_q(turn, phi_q, sums);
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
    float y[kFeatures / 8][4], p[8][4], dp[8][4], dphi[kFeatures / 8][4], of_mean[1][4];
  };

  __device__ __forceinline__ void start_phi_q(int turn, Accumulators& sums) const {
    block.wait_full(Pipelines::kQ, turn);
    if constexpr (kMap) {
      begin_products();
      multiply_heads<64>(sums.y, block.input_of(turn, Memory::kQ), block.weight());
      commit_products();
    }
  }

  /// Behind the wait for y.
  __device__ __forceinline__ void finish_phi_q(int turn,
                                               uint32_t (&phi_q)[kSteps][4],
                                               Accumulators& sums) const {
    if constexpr (kMap) {
      const int valid = block.valid_of(turn);
      settle(sums.y);
      activate<kFeatures>(phi_q,
                          sums.y,
                          block.bias,
                          block.a.rule.scale,
                          block.low < valid,
                          block.high < valid,
                          block.lane);
    } else {
      const Tile<kFeatures> given_phi_q{block.input_at(turn, Memory::kQ)};
#pragma unroll
      for (int step = 0; step < kSteps; ++step)
        given_phi_q.load_a(phi_q[step], block.row0, 2 * step, block.lane);
    }
  }

  /// Starts dp = d o v^T, dphi = d o (S - z m^T)^T and d o . m behind y, and waits for y. m, the
  /// mean of the values so far, is a tile of its high and low halves, so d o . m comes in columns
  /// 0 and 1.
  __device__ __forceinline__ void start_products(int turn, Accumulators& sums) const {
    const Tile<kHead> grad_o{block.value_at(turn, Memory::kGradO)};
    const Tile<kFeatures> s_centred{block.base + block.state_at(turn)};
    const Tile<kHead> mean{s_centred.base + 2 * kFeatures * kHead};
    block.wait_full(Pipelines::kGradO, turn);
    block.wait_full(Pipelines::kV, turn);
    block.wait_full(Pipelines::kState, turn);
    begin_products();
    multiply_heads<64>(
        sums.dp, block.value_of(turn, Memory::kGradO), block.value_of(turn, Memory::kV));
#pragma unroll
    for (int step = 0; step < kHead / 16; ++step) {
      product<Major::kK, Major::kMN>(sums.dphi,
                                     operand<Major::kK>(grad_o, 0, step),
                                     operand<Major::kMN>(s_centred, 0, step),
                                     step > 0);
      product<Major::kK, Major::kK>(sums.of_mean,
                                    operand<Major::kK>(grad_o, 0, step),
                                    operand<Major::kK>(mean, 0, step),
                                    step > 0);
    }
    commit_products();
    wait_products<1>();
  }

  /// Denominators and e; returns d o . m.
  __device__ __forceinline__ OfRows finish_terms(int turn,
                                                 const uint32_t (&phi_q)[kSteps][4],
                                                 Accumulators& sums,
                                                 RowTerms& terms) const {
    const int lane = block.lane;
    if constexpr (kMap) {
      block.wait_full(Pipelines::kPhiK, turn);
    } else {
      block.wait_full(Pipelines::kK, turn);
    }
    begin_products();
#pragma unroll
    for (int step = 0; step < kSteps; ++step)
      product<Major::kK>(
          sums.p, phi_q[step], operand<Major::kK>(block.phi_k_of(turn), 0, step), step > 0);
    commit_products();
    OfRows before;  // of the denominator, what comes from before the chunk
    add_dots<kFeatures>(before, phi_q, block.z_of(turn), lane);
    wait_products<0>();
    settle(sums.dp);
    settle(sums.dphi);
    settle(sums.of_mean);
    settle(sums.p);
    if constexpr (!kColumnPart) block.release(Pipelines::kV, turn);
    const float(&of_mean)[4] = sums.of_mean[0];
    const OfRows mean_grad{__shfl_sync(0xffffffffu, of_mean[0] + of_mean[1], lane & ~3),
                           __shfl_sync(0xffffffffu, of_mean[2] + of_mean[3], lane & ~3)};
    terms.add_seen(sums.p, sums.dp, block.low, lane);
    terms.add_before<kFeatures>(phi_q, sums.dphi);
    terms.finish(before, mean_grad, block.a.rule);
    return mean_grad;
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

  /// Epilogue: d y of the queries for the sums, which make d q of it; without a map d q, in q's
  /// place.
  __device__ __forceinline__ void store_grad_phi(int turn,
                                                 const uint32_t (&phi_q)[kSteps][4],
                                                 const Accumulators& sums,
                                                 const RowTerms& terms) const {
    if constexpr (kMap) {
      block.release(Pipelines::kPhiK, turn);
      uint32_t grad_y[kSteps][4];
      grad_map_of_rows<kFeatures>(
          grad_y,
          phi_q,
          sums.dphi,
          {terms.inverse.low * block.a.rule.scale, terms.inverse.high * block.a.rule.scale});
      block.wait_empty(Pipelines::kGradYQ, turn);
      store_rows<kFeatures>(block.grad_y_q, block.row0, grad_y, block.lane);
      make_visible_to_wgmma();
      block.publish(Pipelines::kGradYQ, turn);
    } else {
      block.release(Pipelines::kK, turn);
      stage_rows<kFeatures>(Tile<kFeatures>{block.input_at(turn, Memory::kQ)},
                            block.row0,
                            sums.dphi,
                            terms.inverse.low,
                            terms.inverse.high,
                            block.lane);
      make_visible_to_wgmma();
      block.release(Pipelines::kQ, turn);
    }
  }

  const Block& block;
};

}  // namespace t2r::kernels::cuda::sm90
