#pragma once

#include "model/kernels/cuda/sm90/backward/state_sums.cuh"

namespace t2r::kernels::cuda::sm90 {

/// The third warpgroup of head size 64: the sums, and what the rows have no time for: dS and dz
/// over chunks, dW and d b over all of them, and d q.
///
/// dz and d b are rows of products, too: the first warp's rows 0 and 1 sum R's rows weighted with e
/// (its high and low halves), rows 2 and 3 those of d y.
template <int kFeatures, bool kMap, BackwardPart kPart>
class SumsConsumer<64, kFeatures, kMap, kPart> {
 public:
  using Block = BackwardBlock<64, kFeatures, kMap, kPart>;
  __device__ __forceinline__ explicit SumsConsumer(const Block& owner) : block(owner) {}

  __device__ __forceinline__ void run() const {
    take_registers<160>();
    wait_for_earlier_kernels();
    if constexpr (kMap) block.wait_full(Pipelines::kMapReady, 0);
    Matrix ds = {}, dw = {}, sums = {};  // dS^T, dW^T; dz and d b
    if constexpr (kColumnPart) start(ds, sums);
    publish_state(0, ds, sums);
    for (int turn = 0; turn < block.turns; ++turn) {
      add_chunk(turn, ds, sums);
      publish_state(turn + 1, ds, sums);
      if constexpr (kMap && kRowPart) finish_queries(turn, dw, sums);
      if constexpr (kMap && kColumnPart) finish_keys(turn, dw, sums);
    }
    if constexpr (kColumnPart) block.wait_released(Pipelines::kGradState, block.turns - 1);
    store_sums(ds, dw, sums);
  }

 private:
  using Memory = typename Block::Memory;
  using Pipelines = typename Block::Pipelines;
  using Matrix = float[kFeatures / 8][4];
  static constexpr int kSteps = Block::kSteps;
  static constexpr bool kRowPart = Block::kRowPart, kColumnPart = Block::kColumnPart;

  /// What later segments, or the gradient of the final state, send back.
  __device__ __forceinline__ void start(Matrix& ds, Matrix& sums) const {
    const int lane = block.lane;
    const StartState from = start_grad_state<64>(block);
    if (from.s == nullptr) return;
#pragma unroll
    for (int n = 0; n < kFeatures / 8; ++n)
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const int feature = n * 8 + 2 * (lane & 3) + (i & 1);
        if (feature >= block.features) continue;
        ds[n][i] = from.s[feature * kHead + (i < 2 ? block.low : block.high)];
        if (holds_sums && lane < 4 && i < 2) sums[n][i] = from.z[feature];
      }
  }

  /// Hands dS and dz to the columns.
  __device__ __forceinline__ void publish_state(int turn,
                                                const Matrix& ds,
                                                const Matrix& sums) const {
    if (!kColumnPart || turn >= block.turns) return;
    block.wait_empty(Pipelines::kGradState, turn);
    store_split_rows(block.ds_hi_of(turn), block.ds_lo_of(turn), block.row0, ds, block.lane);
    share_sums(0, sums, block.dz_of(turn));
    make_visible_to_wgmma();
    block.publish(Pipelines::kGradState, turn);
  }

  /// dS += d o^T R, dz += e^T R.
  __device__ __forceinline__ void add_chunk(int turn, Matrix& ds, Matrix& sums) const {
    const Tile<kFeatures> scaled_phi_q = block.scaled_phi_q_of(turn);
    const Tile<kHead> grad_o{block.value_at(turn, Memory::kGradO)};
    const int lane = block.lane;
    const float* const e = block.e_of(turn);
    block.wait_full(Pipelines::kGradO, turn);
    block.wait_full(Pipelines::kRows, turn);
    uint32_t e_rows[4][4] = {};  // e, high and low halves
    if (holds_sums && lane < 8) {
#pragma unroll
      for (int step = 0; step < 4; ++step)
#pragma unroll
        for (int i = 0; i < 2; ++i) {
          const float2 pair =
              *reinterpret_cast<const float2*>(e + 16 * step + 8 * i + 2 * (lane & 3));
          uint32_t hi, lo;
          split(pair.x, pair.y, hi, lo);
          e_rows[step][2 * i] = lane < 4 ? hi : lo;
        }
    }
    begin_products();
#pragma unroll
    for (int step = 0; step < 4; ++step)
      product<Major::kMN, Major::kMN>(ds,
                                      operand<Major::kMN>(grad_o, 0, step),
                                      operand<Major::kMN>(scaled_phi_q, 0, step),
                                      true);
    add_rows(sums, scaled_phi_q, e_rows);
    commit_products();
    wait_products<0>();
    settle(ds);
    settle(sums);
    block.release(Pipelines::kRows, turn);
    if constexpr (kColumnPart) {
      block.publish(Pipelines::kGradOSummed, turn);
    } else {
      block.release(Pipelines::kGradO, turn);
    }
  }

  /// The queries' part of dW and d b, and d q = d y W, in q's place.
  __device__ __forceinline__ void finish_queries(int turn, Matrix& dw, Matrix& sums) const {
    block.wait_full(Pipelines::kQ, turn);
    block.wait_full(Pipelines::kGradYQ, turn);
    const Tile<kHead> q{block.input_at(turn, Memory::kQ)};
    float grad[8][4];
    start_map_sums(q, block.grad_y_q, 1.0F / block.a.rule.scale, dw, sums);
    if constexpr (kFeatures > 32) {  // all at once, registers would not suffice (C7512)
      finish_map_sums(dw, sums);
      begin_products();
    }
#pragma unroll
    for (int step = 0; step < kSteps; ++step)
      product<Major::kK, Major::kMN>(grad,
                                     operand<Major::kK>(block.grad_y_q, 0, step),
                                     operand<Major::kMN>(block.weight()[0], 0, step),
                                     step > 0);
    finish_map_sums(dw, sums);
    settle(grad);
    block.release(Pipelines::kGradYQ, turn);
    sync_warpgroup(3);  // everybody is done with q
    stage_rows<kHead>(q, block.row0, grad, 1.0F, 1.0F, block.lane);
    make_visible_to_wgmma();
    block.release(Pipelines::kQ, turn);
  }

  /// The keys' part of dW and d b.
  __device__ __forceinline__ void finish_keys(int turn, Matrix& dw, Matrix& sums) const {
    block.wait_full(Pipelines::kK, turn);
    block.wait_full(Pipelines::kGradYK, turn);
    start_map_sums(Tile<kHead>{block.input_at(turn, Memory::kK)}, block.grad_y_k, 1.0F, dw, sums);
    finish_map_sums(dw, sums);
    block.release(Pipelines::kGradYK, turn);
    block.release(Pipelines::kK, turn);
  }

  /// Starts dW += x^T d y; d b += the sum of d y, times `weight_of_rows`.
  __device__ __forceinline__ void start_map_sums(const Tile<kHead>& x,
                                                 const Tile<kFeatures>& grad_y,
                                                 float weight_of_rows,
                                                 Matrix& dw,
                                                 Matrix& sums) const {
    uint32_t hi, lo;
    split(weight_of_rows, weight_of_rows, hi, lo);
    const uint32_t own = holds_sums && block.lane / 8 == 1 ? (block.lane & 4 ? lo : hi) : 0u;
    const uint32_t rows[4][4] = {
        {own, 0, own, 0}, {own, 0, own, 0}, {own, 0, own, 0}, {own, 0, own, 0}};
    begin_products();
#pragma unroll
    for (int step = 0; step < 4; ++step)
      product<Major::kMN, Major::kMN>(
          dw, operand<Major::kMN>(x, 0, step), operand<Major::kMN>(grad_y, 0, step), true);
    add_rows(sums, grad_y, rows);
  }
  __device__ __forceinline__ void finish_map_sums(Matrix& dw, Matrix& sums) const {
    commit_products();
    wait_products<0>();
    settle(dw);
    settle(sums);
  }

  /// Adds a tile's rows, weighted: weights[step] has the weights of rows from 16 step and from 16
  /// step + 8 on.
  __device__ __forceinline__ static void add_rows(Matrix& sums,
                                                  const Tile<kFeatures>& tile,
                                                  const uint32_t (&weights)[4][4]) {
#pragma unroll
    for (int step = 0; step < 4; ++step)
      product<Major::kMN>(sums, weights[step], operand<Major::kMN>(tile, 0, step), true);
  }

  /// Rows `row` and row + 1 of the sums, added up.
  __device__ __forceinline__ void share_sums(int row, const Matrix& sums, float* to) const {
#pragma unroll
    for (int n = 0; n < kFeatures / 8; ++n) {
      const float2 both{sums[n][0] + __shfl_down_sync(0xffffffffu, sums[n][0], 4),
                        sums[n][1] + __shfl_down_sync(0xffffffffu, sums[n][1], 4)};
      if (holds_sums && block.lane / 4 == row)
        *reinterpret_cast<float2*>(to + 8 * n + 2 * (block.lane & 3)) = both;
    }
  }

  /// Epilogue.
  __device__ __forceinline__ void store_sums(const Matrix& ds,
                                             const Matrix& dw,
                                             const Matrix& sums) const {
    float* const shared_sums = block.dz_of(0);  // nobody reads it any more
    const int feature = block.tid & 127;
    const GradStateTarget to = grad_state_target<64, kPart>(block);
    if (to.s != nullptr) {
      write_transposed<64>(ds, to.s, block);
      share_sums(0, sums, shared_sums);
      sync_warpgroup(3);
      if (feature < block.features) to.z[feature] = shared_sums[feature];
      sync_warpgroup(3);
    }
    if constexpr (kMap) {
      float* const part = grad_map_target<64, kPart>(block);
      write_transposed<64>(dw, part, block);
      share_sums(2, sums, shared_sums);
      sync_warpgroup(3);
      if (feature < block.features) {
        part[block.features * kHead + feature] = shared_sums[feature];
        part[block.features * kHead + block.features + feature] = 0.0F;
      }
    }
  }

  const Block& block;
  const bool holds_sums = (block.warp & 3) == 0;
};

}  // namespace t2r::kernels::cuda::sm90
