#pragma once

// Symbols as in causal_backward.cuh, and: p, dp weights phi(q) . phi(k) and d o . v of the rows'
// queries (rows of accumulators) with 16 keys (columns); R = phi(q) / D (scaled_phi_q); dphi the
// gradient of phi(q), d y that of y = W x + b.

#include "model/kernels/cuda/causal/backward/block.cuh"

namespace t2r::kernels::cuda {

/// The part of a chunk's backward whose rows are queries: denominators, e, R and d q.
template <class Block>
class BackwardRows {
 public:
  using Features = typename Block::Features;
  __device__ __forceinline__ BackwardRows(const Block& owner, const BackwardChunk& of)
      : block(owner), chunk(of) {}

  /// Of the launch for the columns alone: e, and 1 / denominator, from the launch for the rows.
  __device__ __forceinline__ RowPair load_terms() const {
    const int low = block.low, high = block.high, valid = chunk.valid;
    const float den_low = low < valid ? block.saved_denominator[chunk.first + low] : 1.0F;
    const float den_high = high < valid ? block.saved_denominator[chunk.first + high] : 1.0F;
    if ((block.lane & 3) == 0) {
      block.e_shared[low] = low < valid ? block.saved_e[chunk.first + low] : 0.0F;
      block.e_shared[high] = high < valid ? block.saved_e[chunk.first + high] : 0.0F;
    }
    return {1.0F / den_low, 1.0F / den_high};
  }

  /// e, and d q, written; returns 1 / denominator.
  template <BackwardPart kPart>
  __device__ __forceinline__ RowPair run(const Features& phi_q) const {
    Weights dp;
    GradFeatures dphi = {};
    Sums sums;
    multiply(phi_q, dp, dphi, sums);
    add_before(phi_q, dphi, sums);
    const Terms terms = finish_terms<kPart>(sums);
    finish_grad_phi(dp, dphi, terms.e);
    write_grad_q(phi_q, dphi, terms.inverse);
    return terms.inverse;
  }

  /// R, for everybody.
  __device__ __forceinline__ void store_scaled(const Features& phi_q,
                                               const RowPair& inverse) const {
#pragma unroll
    for (int n = 0; n < kFeatures / 8; ++n) {
      const float2 phi_low = unpack(phi_q[n / 2][2 * (n & 1)]),
                   phi_high = unpack(phi_q[n / 2][2 * (n & 1) + 1]);
      block.scaled_phi_q.store_pair(
          block.low, n, block.lane & 3, pack(phi_low.x * inverse.low, phi_low.y * inverse.low));
      block.scaled_phi_q.store_pair(block.high,
                                    n,
                                    block.lane & 3,
                                    pack(phi_high.x * inverse.high, phi_high.y * inverse.high));
    }
  }

 private:
  static constexpr int kSteps = Block::kSteps, kFeatures = 16 * kSteps, kBlocks = Block::kWarps,
                       kHeadSteps = Block::kHeadSteps;
  using Weights = float[kBlocks][2][4];  // d o . v, of 16 columns each
  using GradFeatures = float[kFeatures / 8][4];

  struct Sums {
    RowPair denominator, inner;  // inner: d o . numerator
  };
  struct Terms {
    RowPair inverse, e;
  };

  /// dphi = S d o; of the chunk's earlier keys dp = d o . v, and the sums over p and p dp.
  __device__ __forceinline__ void multiply(const Features& phi_q,
                                           Weights& dp,
                                           GradFeatures& dphi,
                                           Sums& sums) const {
    const int lane = block.lane;
    uint32_t own_grad_o[kHeadSteps][4];
#pragma unroll
    for (int step = 0; step < kHeadSteps; ++step)
      block.grad_o_of(chunk).load_a(own_grad_o[step], block.row0, 2 * step, lane);
#pragma unroll
    for (int step = 0; step < kHeadSteps; ++step) {
#pragma unroll
      for (int n = 0; n < kFeatures / 16; ++n) {
        uint32_t b[4];
        block.s_hi.load_b(b, 16 * n, 2 * step, lane);
        mma(dphi[2 * n], own_grad_o[step], b[0], b[1]);
        mma(dphi[2 * n + 1], own_grad_o[step], b[2], b[3]);
        block.s_lo.load_b(b, 16 * n, 2 * step, lane);
        mma(dphi[2 * n], own_grad_o[step], b[0], b[1]);
        mma(dphi[2 * n + 1], own_grad_o[step], b[2], b[3]);
      }
    }
#pragma unroll
    for (int j = 0; j < kBlocks; ++j) {
      if (j > block.row_block) continue;
      float p[2][4] = {};
#pragma unroll
      for (int n = 0; n < 2; ++n)
#pragma unroll
        for (int i = 0; i < 4; ++i) dp[j][n][i] = 0.0F;
#pragma unroll
      for (int step = 0; step < kSteps; ++step) {
        uint32_t b[4];
        block.phi_k_of(chunk).load_b(b, j * 16, 2 * step, lane);
        mma(p[0], phi_q[step], b[0], b[1]);
        mma(p[1], phi_q[step], b[2], b[3]);
      }
#pragma unroll
      for (int step = 0; step < kHeadSteps; ++step) {
        uint32_t b[4];
        block.v_of(chunk).load_b(b, j * 16, 2 * step, lane);
        mma(dp[j][0], own_grad_o[step], b[0], b[1]);
        mma(dp[j][1], own_grad_o[step], b[2], b[3]);
      }
      clear_unseen(p, j);
#pragma unroll
      for (int n = 0; n < 2; ++n) {
        sums.denominator.low += p[n][0] + p[n][1];
        sums.denominator.high += p[n][2] + p[n][3];
        sums.inner.low = fmaf(p[n][0], dp[j][n][0], fmaf(p[n][1], dp[j][n][1], sums.inner.low));
        sums.inner.high = fmaf(p[n][2], dp[j][n][2], fmaf(p[n][3], dp[j][n][3], sums.inner.high));
      }
    }
  }

  /// Zeros where a row does not see one of 16 keys.
  __device__ __forceinline__ void clear_unseen(float (&x)[2][4], int j) const {
    if (j == block.row_block || block.starts != nullptr)
      chunk.mask.clear_unseen(x, block.row0, j * 16, block.lane);
  }

  // Do the rows see the carried state?
  __device__ __forceinline__ bool before_low() const {
    return chunk.mask.start_low < 0;
  }
  __device__ __forceinline__ bool before_high() const {
    return chunk.mask.start_high < 0;
  }

  /// Adds what comes from before the chunk.
  __device__ __forceinline__ void add_before(const Features& phi_q,
                                             GradFeatures& dphi,
                                             Sums& sums) const {
#pragma unroll
    for (int n = 0; n < kFeatures / 8; ++n) {
      const float2 z_pair =
          *reinterpret_cast<const float2*>(block.z + 8 * n + 2 * (block.lane & 3));
      const float2 phi_low = unpack(phi_q[n / 2][2 * (n & 1)]),
                   phi_high = unpack(phi_q[n / 2][2 * (n & 1) + 1]);
      if (before_low()) {
        sums.denominator.low =
            fmaf(phi_low.x, z_pair.x, fmaf(phi_low.y, z_pair.y, sums.denominator.low));
        sums.inner.low = fmaf(phi_low.x, dphi[n][0], fmaf(phi_low.y, dphi[n][1], sums.inner.low));
      } else {
        dphi[n][0] = dphi[n][1] = 0.0F;
      }
      if (before_high()) {
        sums.denominator.high =
            fmaf(phi_high.x, z_pair.x, fmaf(phi_high.y, z_pair.y, sums.denominator.high));
        sums.inner.high =
            fmaf(phi_high.x, dphi[n][2], fmaf(phi_high.y, dphi[n][3], sums.inner.high));
      } else {
        dphi[n][2] = dphi[n][3] = 0.0F;
      }
    }
  }

  /// 1 / denominator and e, which is also stored, for everybody and the launch for the columns.
  template <BackwardPart kPart>
  __device__ __forceinline__ Terms finish_terms(const Sums& sums) const {
    const Rule& rule = block.a.rule;
    const int low = block.low, high = block.high;
    const float den_low = row_sum(sums.denominator.low) + rule.added;
    const float den_high = row_sum(sums.denominator.high) + rule.added;
    Terms terms;
    terms.inverse = {1.0F / fmaxf(den_low, rule.floor), 1.0F / fmaxf(den_high, rule.floor)};
    const float inner_low = row_sum(sums.inner.low), inner_high = row_sum(sums.inner.high);
    terms.e = {den_low < rule.floor ? 0.0F : -inner_low * terms.inverse.low,
               den_high < rule.floor ? 0.0F : -inner_high * terms.inverse.high};
    if ((block.lane & 3) == 0) {
      block.e_shared[low] = terms.e.low;
      block.e_shared[high] = terms.e.high;
      if constexpr (kPart == BackwardPart::kRows) {
        if (low < chunk.valid) {
          block.saved_denominator[chunk.first + low] = fmaxf(den_low, rule.floor);
          block.saved_e[chunk.first + low] = terms.e.low;
        }
        if (high < chunk.valid) {
          block.saved_denominator[chunk.first + high] = fmaxf(den_high, rule.floor);
          block.saved_e[chunk.first + high] = terms.e.high;
        }
      }
    }
    return terms;
  }

  /// d phi(q) times the denominator: dphi + e z + (dp + e) phi(k).
  __device__ __forceinline__ void finish_grad_phi(Weights& dp,
                                                  GradFeatures& dphi,
                                                  const RowPair& e) const {
    const int lane = block.lane;
#pragma unroll
    for (int n = 0; n < kFeatures / 8; ++n) {
      const float2 z_pair = *reinterpret_cast<const float2*>(block.z + 8 * n + 2 * (lane & 3));
      if (before_low()) {
        dphi[n][0] = fmaf(e.low, z_pair.x, dphi[n][0]);
        dphi[n][1] = fmaf(e.low, z_pair.y, dphi[n][1]);
      }
      if (before_high()) {
        dphi[n][2] = fmaf(e.high, z_pair.x, dphi[n][2]);
        dphi[n][3] = fmaf(e.high, z_pair.y, dphi[n][3]);
      }
    }
#pragma unroll
    for (int j = 0; j < kBlocks; ++j) {
      if (j > block.row_block) continue;
#pragma unroll
      for (int n = 0; n < 2; ++n)
#pragma unroll
        for (int i = 0; i < 4; ++i) dp[j][n][i] += i < 2 ? e.low : e.high;
      clear_unseen(dp[j], j);
      uint32_t weights[4];
      pack_operand(weights, dp[j]);
#pragma unroll
      for (int n = 0; n < kFeatures / 16; ++n) {
        uint32_t b[4];
        block.phi_k_of(chunk).load_b_transposed(b, j * 16, 2 * n, lane);
        mma(dphi[2 * n], weights, b[0], b[1]);
        mma(dphi[2 * n + 1], weights, b[2], b[3]);
      }
    }
  }

  /// Epilogue; d y of the queries stays for the sums.
  __device__ __forceinline__ void write_grad_q(const Features& phi_q,
                                               const GradFeatures& dphi,
                                               const RowPair& inverse) const {
    if constexpr (Block::kHasMap) {
      const float scale = block.a.rule.scale;
      Features grad_y;
      Block::grad_map(grad_y, phi_q, dphi, {inverse.low * scale, inverse.high * scale});
      store_rows<kFeatures>(block.grad_y_q, block.row0, grad_y, block.lane);
      block.write_map_gradient(block.a.grad_q, grad_y, chunk);
    } else {
      stage_rows<kFeatures>(
          block.scaled_phi_q, block.row0, dphi, inverse.low, inverse.high, block.lane);
      block.write_gradient(block.a.grad_q, block.scaled_phi_q, chunk, block.input_units);
    }
  }

  const Block& block;
  const BackwardChunk& chunk;
};

}  // namespace t2r::kernels::cuda
