#pragma once

// Symbols: kernel.cuh. Rows of accumulators are keys, columns queries or features.

#include "model/kernels/cuda/sm90/backward/block.cuh"

namespace t2r::kernels::cuda::sm90 {

/// The second warpgroup of head size 64: phi(k), d k and d v.
template <int kFeatures, bool kMap, BackwardPart kPart>
class ColumnsConsumer<64, kFeatures, kMap, kPart> {
 public:
  using Block = BackwardBlock<64, kFeatures, kMap, kPart>;
  __device__ __forceinline__ explicit ColumnsConsumer(const Block& owner) : block(owner) {}

  __device__ __forceinline__ void run() const {
    take_registers<168>();
    wait_for_earlier_kernels();
    if constexpr (kMap) block.wait_full(Pipelines::kMapReady, 0);
    const PairMasks masks(/*not_after=*/false, block.warp & 3, block.lane);
    constexpr int kAhead = Memory::kPhiKStages - 1;
    for (int turn = -kAhead; turn < block.turns; ++turn) {
      make_phi_k(turn + kAhead);
      if (kColumnPart && turn >= 0) {
        uint32_t own_phi_k[kSteps][4], weights[4][4], grad_weights[4][4], grad_y[kSteps][4];
        float dphi[kFeatures / 8][4], dv[8][4];
        make_weights(turn, own_phi_k, dphi, weights, grad_weights);
        masks.clear(weights);
        masks.clear(grad_weights);
        start_gradients(turn, own_phi_k, weights, grad_weights, dphi, dv);
        publish_grad_y(turn, own_phi_k, dphi, grad_y);
        store_gradients(turn, grad_y, dv);
      }
    }
  }

 private:
  using Memory = typename Block::Memory;
  using Pipelines = typename Block::Pipelines;
  static constexpr int kSteps = Block::kSteps;
  static constexpr bool kRowPart = Block::kRowPart, kColumnPart = Block::kColumnPart;

  /// Features of the keys, for the rows, too.
  __device__ __forceinline__ void make_phi_k(int turn) const {
    if constexpr (kMap) {
      if (turn >= block.turns) return;
      block.wait_full(Pipelines::kK, turn);
      const int valid = block.valid_of(turn);
      float y[kFeatures / 8][4];
      begin_products();
      multiply_heads<64>(y, block.input_of(turn, Memory::kK), block.weight());
      commit_products();
      wait_products<0>();
      settle(y);
      uint32_t phi[kSteps][4];
      activate<kFeatures>(
          phi, y, block.bias, 1.0F, block.low < valid, block.high < valid, block.lane);
      if constexpr (kRowPart) block.wait_empty(Pipelines::kPhiK, turn);
      store_rows<kFeatures>(block.phi_k_of(turn), block.row0, phi, block.lane);
      make_visible_to_wgmma();
      block.publish(Pipelines::kPhiK, turn);
      if constexpr (!kColumnPart) block.release(Pipelines::kK, turn);
    }
  }

  /// dphi = v dS^T, and the chunk's weights p^T = phi(k) R^T, dp^T + e = v d o^T + e, packed.
  __device__ __forceinline__ void make_weights(int turn,
                                               uint32_t (&own_phi_k)[kSteps][4],
                                               float (&dphi)[kFeatures / 8][4],
                                               uint32_t (&weights)[4][4],
                                               uint32_t (&grad_weights)[4][4]) const {
    const Tile<kHead> v{block.value_at(turn, Memory::kV)};
    if constexpr (!kMap) block.wait_full(Pipelines::kK, turn);
#pragma unroll
    for (int step = 0; step < kSteps; ++step)
      block.phi_k_of(turn).load_a(own_phi_k[step], block.row0, 2 * step, block.lane);
    float p[8][4], dp[8][4];
    block.wait_full(Pipelines::kV, turn);
    block.wait_full(Pipelines::kGradO, turn);
    begin_products();
    multiply_heads<64>(dp, block.value_of(turn, Memory::kV), block.value_of(turn, Memory::kGradO));
    block.wait_full(Pipelines::kGradState, turn);
#pragma unroll
    for (int step = 0; step < kHead / 16; ++step) {
      product<Major::kK, Major::kMN>(dphi,
                                     operand<Major::kK>(v, 0, step),
                                     operand<Major::kMN>(block.ds_hi_of(turn), 0, step),
                                     step > 0);
      product<Major::kK, Major::kMN>(dphi,
                                     operand<Major::kK>(v, 0, step),
                                     operand<Major::kMN>(block.ds_lo_of(turn), 0, step),
                                     true);
    }
    block.wait_full(Pipelines::kRows, turn);
#pragma unroll
    for (int step = 0; step < kSteps; ++step)
      product<Major::kK>(
          p, own_phi_k[step], operand<Major::kK>(block.scaled_phi_q_of(turn), 0, step), step > 0);
    commit_products();
    wait_products<0>();
    settle(p);
    settle(dp);
    settle(dphi);
    if constexpr (!kMap) block.release(Pipelines::kK, turn);
    pack_columns(weights, grad_weights, p, dp, block.e_of(turn), block.lane);
  }

  /// dphi += (dp + e)^T R; behind it, dv = phi(k) dS + p^T d o.
  __device__ __forceinline__ void start_gradients(int turn,
                                                  const uint32_t (&own_phi_k)[kSteps][4],
                                                  const uint32_t (&weights)[4][4],
                                                  const uint32_t (&grad_weights)[4][4],
                                                  float (&dphi)[kFeatures / 8][4],
                                                  float (&dv)[8][4]) const {
    const Tile<kHead> grad_o{block.value_at(turn, Memory::kGradO)};
    begin_products();
#pragma unroll
    for (int step = 0; step < 4; ++step)
      product<Major::kMN>(dphi,
                          grad_weights[step],
                          operand<Major::kMN>(block.scaled_phi_q_of(turn), 0, step),
                          true);
    commit_products();
#pragma unroll
    for (int step = 0; step < kSteps; ++step) {
      product<Major::kK>(
          dv, own_phi_k[step], operand<Major::kK>(block.ds_hi_of(turn), 0, step), step > 0);
      product<Major::kK>(
          dv, own_phi_k[step], operand<Major::kK>(block.ds_lo_of(turn), 0, step), true);
    }
#pragma unroll
    for (int step = 0; step < 4; ++step)
      product<Major::kMN>(dv, weights[step], operand<Major::kMN>(grad_o, 0, step), true);
    commit_products();
  }

  /// d phi(k), or d y of the keys, also for the sums.
  __device__ __forceinline__ void publish_grad_y(int turn,
                                                 const uint32_t (&own_phi_k)[kSteps][4],
                                                 float (&dphi)[kFeatures / 8][4],
                                                 uint32_t (&grad_y)[kSteps][4]) const {
    wait_products<1>();
    settle(dphi);
    block.release(Pipelines::kRows, turn);
    grad_map_of_columns<kFeatures, kMap>(grad_y, own_phi_k, dphi, block.dz_of(turn), block.lane);
    if constexpr (kMap) {
      block.wait_empty(Pipelines::kGradYK, turn);
      store_rows<kFeatures>(block.grad_y_k, block.row0, grad_y, block.lane);
    }
    make_visible_to_wgmma();  // also: dz has been read, not only asked for
    if constexpr (kMap) block.publish(Pipelines::kGradYK, turn);
  }

  /// Epilogue: d v in v's place, d k in d o's.
  __device__ __forceinline__ void store_gradients(int turn,
                                                  const uint32_t (&grad_y)[kSteps][4],
                                                  float (&dv)[8][4]) const {
    const int row0 = block.row0, lane = block.lane;
    const Tile<kHead> grad_v{block.value_at(turn, Memory::kV)},
        grad_k{block.value_at(turn, Memory::kGradO)};
    float grad[8][4];
    if constexpr (kMap) {
      begin_products();
#pragma unroll
      for (int step = 0; step < kSteps; ++step)
        product<Major::kMN>(
            grad, grad_y[step], operand<Major::kMN>(block.weight()[0], 0, step), step > 0);
      commit_products();
      wait_products<1>();
    } else {
      wait_products<0>();
    }
    settle(dv);
    // d k goes where d o was. Before the next line: behind it, the sums might go on until their
    // next but one arrival.
    block.wait_full(Pipelines::kGradOSummed, turn);
    block.release(Pipelines::kGradState, turn);
    sync_warpgroup(2);  // everybody is done with v and d o
    stage_rows<kHead>(grad_v, row0, dv, 1.0F, 1.0F, lane);
    make_visible_to_wgmma();
    block.release(Pipelines::kV, turn);
    if constexpr (kMap) {
      wait_products<0>();
      settle(grad);
      stage_rows<kHead>(grad_k, row0, grad, 1.0F, 1.0F, lane);
    } else {
      store_rows<kFeatures>(Tile<kFeatures>{grad_k.base}, row0, grad_y, lane);
    }
    make_visible_to_wgmma();
    block.release(Pipelines::kGradO, turn);
  }

  const Block& block;
};

}  // namespace t2r::kernels::cuda::sm90
