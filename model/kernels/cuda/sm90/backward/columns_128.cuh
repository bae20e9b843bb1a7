#pragma once

// Symbols: kernel.cuh. Rows of accumulators are keys, columns queries or features.

#include "model/kernels/cuda/sm90/backward/block.cuh"

namespace t2r::kernels::cuda::sm90 {

/// The second warpgroup of head size 128: d k and d v. The halves of d v and of d k start one by
/// one, so that there are registers for all that is on its way.
template <int kFeatures, bool kMap, BackwardPart kPart>
class ColumnsConsumer<128, kFeatures, kMap, kPart> {
 public:
  using Block = BackwardBlock<128, kFeatures, kMap, kPart>;
  __device__ __forceinline__ explicit ColumnsConsumer(const Block& owner) : block(owner) {}

  __device__ __forceinline__ void run() const {
    take_registers<176>();
    if constexpr (Block::kColumnPart) {
      const PairMasks masks(/*not_after=*/false, block.warp & 3, block.lane);
      for (int turn = 0; turn < block.turns; ++turn) {
        uint32_t own_phi_k[kSteps][4], weights[4][4], grad_weights[4][4], grad_y[kSteps][4];
        float dphi[kFeatures / 8][4], dv[2][8][4];
        make_weights(turn, own_phi_k, dphi, weights, grad_weights);
        masks.clear(weights);
        masks.clear(grad_weights);
        start_grad_phi(turn, grad_weights, dphi);
        start_dv(turn, 0, own_phi_k, weights, dv[0]);
        finish_grad_phi(turn, own_phi_k, dphi, grad_y);
        start_dv(turn, 1, own_phi_k, weights, dv[1]);
        publish_grad_y(turn, grad_y);
        wait_products<0>();
        settle(dv[0]);
        settle(dv[1]);
        // dz has been read, not only asked for: with a map, grad_y's store has seen to it.
        if constexpr (!kMap) make_visible_to_wgmma();
        block.release(Pipelines::kGradState, turn);
        store_gradients(turn, grad_y, dv);
      }
    }
  }

 private:
  using Memory = typename Block::Memory;
  using Pipelines = typename Block::Pipelines;
  static constexpr int kSteps = Block::kSteps;

  /// The chunk's weights p^T = phi(k) R^T, dp^T + e = v d o^T + e, packed; starts dphi = v dS^T.
  __device__ __forceinline__ void make_weights(int turn,
                                               uint32_t (&own_phi_k)[kSteps][4],
                                               float (&dphi)[kFeatures / 8][4],
                                               uint32_t (&weights)[4][4],
                                               uint32_t (&grad_weights)[4][4]) const {
    const Tile<kFeatures> phi_k = block.phi_k_of(turn), scaled_phi_q = block.scaled_phi_q_of(turn);
    const HeadTiles v = block.value_of(turn, Memory::kV);
    if constexpr (!kMap) block.wait_full(Pipelines::kK, turn);
    block.wait_full(Pipelines::kV, turn);
    block.wait_full(Pipelines::kGradO, turn);
    block.wait_full(Pipelines::kRows, turn);
#pragma unroll
    for (int step = 0; step < kSteps; ++step)
      phi_k.load_a(own_phi_k[step], block.row0, 2 * step, block.lane);
    float p[8][4], dp[8][4];
    begin_products();
#pragma unroll
    for (int step = 0; step < kSteps; ++step)
      product<Major::kK>(p, own_phi_k[step], operand<Major::kK>(scaled_phi_q, 0, step), step > 0);
    multiply_heads<128>(dp, v, block.value_of(turn, Memory::kGradO));
    commit_products();
    block.wait_full(Pipelines::kGradState, turn);
#pragma unroll
    for (int half = 0; half < 2; ++half)
#pragma unroll
      for (int step = 0; step < 4; ++step)
        product<Major::kK, Major::kMN>(dphi,
                                       operand<Major::kK>(v[half], 0, step),
                                       operand<Major::kMN>(block.ds_hi_of(turn), half * 64, step),
                                       half + step > 0);
    commit_products();
    if constexpr (kMap) {
      block.release(Pipelines::kPhiK, turn);
    } else {
      block.release(Pipelines::kK, turn);
    }
    wait_products<1>();
    settle(p);
    settle(dp);
    pack_columns(weights, grad_weights, p, dp, block.e_of(turn), block.lane);
  }

  /// dphi += (dp + e)^T R.
  __device__ __forceinline__ void start_grad_phi(int turn,
                                                 const uint32_t (&grad_weights)[4][4],
                                                 float (&dphi)[kFeatures / 8][4]) const {
    begin_products();
#pragma unroll
    for (int step = 0; step < 4; ++step)
      product<Major::kMN>(dphi,
                          grad_weights[step],
                          operand<Major::kMN>(block.scaled_phi_q_of(turn), 0, step),
                          true);
    commit_products();
  }

  /// dv = phi(k) dS + p^T d o, of half of the columns.
  __device__ __forceinline__ void start_dv(int turn,
                                           int half,
                                           const uint32_t (&own_phi_k)[kSteps][4],
                                           const uint32_t (&weights)[4][4],
                                           float (&dv)[8][4]) const {
    begin_products();
#pragma unroll
    for (int step = 0; step < kSteps; ++step)
      product<Major::kK>(dv,
                         own_phi_k[step],
                         operand<Major::kK>(block.ds_hi_of(turn), half * kHead, step),
                         step > 0);
#pragma unroll
    for (int step = 0; step < 4; ++step)
      product<Major::kMN>(dv,
                          weights[step],
                          operand<Major::kMN>(block.value_of(turn, Memory::kGradO)[half], 0, step),
                          true);
    commit_products();
  }

  /// d phi(k), or d y of the keys.
  __device__ __forceinline__ void finish_grad_phi(int turn,
                                                  const uint32_t (&own_phi_k)[kSteps][4],
                                                  float (&dphi)[kFeatures / 8][4],
                                                  uint32_t (&grad_y)[kSteps][4]) const {
    wait_products<1>();
    settle(dphi);
    block.release(Pipelines::kRows, turn);
    grad_map_of_columns<kFeatures, kMap>(grad_y, own_phi_k, dphi, block.dz_of(turn), block.lane);
  }

  __device__ __forceinline__ void publish_grad_y(int turn,
                                                 const uint32_t (&grad_y)[kSteps][4]) const {
    block.wait_full(Pipelines::kGradOSummed, turn);  // d k goes where d o was
    if constexpr (kMap) {
      block.wait_empty(Pipelines::kGradYK, turn);
      store_rows<kFeatures>(block.grad_y_k, block.row0, grad_y, block.lane);
      make_visible_to_wgmma();
      block.publish(Pipelines::kGradYK, turn);
    }
  }

  /// Epilogue: d v in v's place, d k in d o's.
  __device__ __forceinline__ void store_gradients(int turn,
                                                  const uint32_t (&grad_y)[kSteps][4],
                                                  const float (&dv)[2][8][4]) const {
    const int row0 = block.row0, lane = block.lane;
    const HeadTiles grad_v = block.value_of(turn, Memory::kV),
                    grad_k = block.value_of(turn, Memory::kGradO);
    float grad[2][8][4];
    const auto start_dk = [&](int half) {
      if constexpr (kMap) {
        begin_products();
#pragma unroll
        for (int step = 0; step < kSteps; ++step)
          product<Major::kMN>(grad[half],
                              grad_y[step],
                              operand<Major::kMN>(block.weight()[half], 0, step),
                              step > 0);
        commit_products();
      }
    };
    start_dk(0);
    sync_warpgroup(2);  // everybody is done with v and d o
    stage_rows<kHead>(grad_v[0], row0, dv[0], 1.0F, 1.0F, lane);
    start_dk(1);
    stage_rows<kHead>(grad_v[1], row0, dv[1], 1.0F, 1.0F, lane);
    make_visible_to_wgmma();
    block.release(Pipelines::kV, turn);
    if constexpr (kMap) {
      wait_products<1>();
      settle(grad[0]);
      stage_rows<kHead>(grad_k[0], row0, grad[0], 1.0F, 1.0F, lane);
      wait_products<0>();
      settle(grad[1]);
      stage_rows<kHead>(grad_k[1], row0, grad[1], 1.0F, 1.0F, lane);
    } else {
      store_rows<kFeatures>(
          Tile<kFeatures>{block.value_at(turn, Memory::kGradO)}, row0, grad_y, lane);
    }
    make_visible_to_wgmma();
    block.release(Pipelines::kGradO, turn);
  }

  const Block& block;
};

}  // namespace t2r::kernels::cuda::sm90
