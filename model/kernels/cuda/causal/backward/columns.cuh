#pragma once

// Symbols as in causal_backward.cuh, and: p, dp weights R . phi(k) and d o . v + e of the rows'
// keys (rows of accumulators) with 16 queries (columns); dphi the gradient of phi(k).

#include "model/kernels/cuda/causal/backward/block.cuh"

namespace t2r::kernels::cuda {

/// The part of a chunk's backward whose rows are keys: d k and d v.
template <class Block>
class BackwardColumns {
 public:
  using Features = typename Block::Features;
  __device__ __forceinline__ BackwardColumns(const Block& owner, const BackwardChunk& of)
      : block(owner), chunk(of) {}

  __device__ __forceinline__ void run(const Features& own_phi_k) const {
    Values dv = {};
    GradFeatures dphi;
    uint32_t own_v[kHeadSteps][4];
#pragma unroll
    for (int step = 0; step < kHeadSteps; ++step)
      block.v_of(chunk).load_a(own_v[step], block.row0, 2 * step, block.lane);
    multiply_state(own_phi_k, own_v, dphi, dv);
    if (block.starts != nullptr) clear_ended(dphi, dv);
    for (int i = block.row_block; i < Block::kWarps; ++i)
      multiply_block(i, own_phi_k, own_v, dphi, dv);
    write_grad_v(dv);
    write_grad_k(own_phi_k, dphi);
  }

 private:
  static constexpr int kSteps = Block::kSteps, kFeatures = 16 * kSteps,
                       kHeadSteps = Block::kHeadSteps, kHead = 16 * kHeadSteps;
  using Values = float[kHead / 8][4];
  using GradFeatures = float[kFeatures / 8][4];
  using OwnValues = uint32_t[kHeadSteps][4];

  /// What later chunks send back: dphi = dz + dS v, dv = dS^T phi(k).
  __device__ __forceinline__ void multiply_state(const Features& own_phi_k,
                                                 const OwnValues& own_v,
                                                 GradFeatures& dphi,
                                                 Values& dv) const {
    const int lane = block.lane;
#pragma unroll
    for (int n = 0; n < kFeatures / 8; ++n) {
      const float2 dz_pair =
          *reinterpret_cast<const float2*>(block.dz_shared + 8 * n + 2 * (lane & 3));
      dphi[n][0] = dphi[n][2] = dz_pair.x;
      dphi[n][1] = dphi[n][3] = dz_pair.y;
    }
#pragma unroll
    for (int step = 0; step < kHeadSteps; ++step)
#pragma unroll
      for (int n = 0; n < kFeatures / 16; ++n) {
        uint32_t b[4];
        block.ds_hi.load_b(b, 16 * n, 2 * step, lane);
        mma(dphi[2 * n], own_v[step], b[0], b[1]);
        mma(dphi[2 * n + 1], own_v[step], b[2], b[3]);
        block.ds_lo.load_b(b, 16 * n, 2 * step, lane);
        mma(dphi[2 * n], own_v[step], b[0], b[1]);
        mma(dphi[2 * n + 1], own_v[step], b[2], b[3]);
      }
#pragma unroll
    for (int step = 0; step < kSteps; ++step)
#pragma unroll
      for (int n = 0; n < kHeadSteps; ++n) {
        uint32_t b[4];
        block.ds_hi.load_b_transposed(b, step * 16, 2 * n, lane);
        mma(dv[2 * n], own_phi_k[step], b[0], b[1]);
        mma(dv[2 * n + 1], own_phi_k[step], b[2], b[3]);
        block.ds_lo.load_b_transposed(b, step * 16, 2 * n, lane);
        mma(dv[2 * n], own_phi_k[step], b[0], b[1]);
        mma(dv[2 * n + 1], own_phi_k[step], b[2], b[3]);
      }
  }

  /// Rows of documents that end inside the chunk get nothing from later chunks.
  __device__ __forceinline__ void clear_ended(GradFeatures& dphi, Values& dv) const {
    if (block.low < chunk.last_start) {
#pragma unroll
      for (auto& tile : dphi) tile[0] = tile[1] = 0.0F;
#pragma unroll
      for (auto& tile : dv) tile[0] = tile[1] = 0.0F;
    }
    if (block.high < chunk.last_start) {
#pragma unroll
      for (auto& tile : dphi) tile[2] = tile[3] = 0.0F;
#pragma unroll
      for (auto& tile : dv) tile[2] = tile[3] = 0.0F;
    }
  }

  /// Adds what 16 of the chunk's queries send back: rows of the block are keys, columns queries.
  __device__ __forceinline__ void multiply_block(int i,
                                                 const Features& own_phi_k,
                                                 const OwnValues& own_v,
                                                 GradFeatures& dphi,
                                                 Values& dv) const {
    const int lane = block.lane;
    float p[2][4] = {}, dp[2][4];
#pragma unroll
    for (int n = 0; n < 2; ++n) {
      const float2 e_pair =
          *reinterpret_cast<const float2*>(block.e_shared + i * 16 + 8 * n + 2 * (lane & 3));
      dp[n][0] = dp[n][2] = e_pair.x;
      dp[n][1] = dp[n][3] = e_pair.y;
    }
#pragma unroll
    for (int step = 0; step < kSteps; ++step) {
      uint32_t b[4];
      block.scaled_phi_q.load_b(b, i * 16, 2 * step, lane);
      mma(p[0], own_phi_k[step], b[0], b[1]);
      mma(p[1], own_phi_k[step], b[2], b[3]);
    }
#pragma unroll
    for (int step = 0; step < kHeadSteps; ++step) {
      uint32_t b[4];
      block.grad_o_of(chunk).load_b(b, i * 16, 2 * step, lane);
      mma(dp[0], own_v[step], b[0], b[1]);
      mma(dp[1], own_v[step], b[2], b[3]);
    }
    if (i == block.row_block || block.starts != nullptr) clear_unseen(i, p, dp);
    uint32_t weights[4], grad_weights[4];
    pack_operand(weights, p);
    pack_operand(grad_weights, dp);
#pragma unroll
    for (int n = 0; n < kHeadSteps; ++n) {
      uint32_t b[4];
      block.grad_o_of(chunk).load_b_transposed(b, i * 16, 2 * n, lane);
      mma(dv[2 * n], weights, b[0], b[1]);
      mma(dv[2 * n + 1], weights, b[2], b[3]);
    }
#pragma unroll
    for (int n = 0; n < kFeatures / 16; ++n) {
      uint32_t b[4];
      block.scaled_phi_q.load_b_transposed(b, i * 16, 2 * n, lane);
      mma(dphi[2 * n], grad_weights, b[0], b[1]);
      mma(dphi[2 * n + 1], grad_weights, b[2], b[3]);
    }
  }

  /// Zeros where a query does not see the key.
  __device__ __forceinline__ void clear_unseen(int i, float (&p)[2][4], float (&dp)[2][4]) const {
#pragma unroll
    for (int n = 0; n < 2; ++n)
#pragma unroll
      for (int x = 0; x < 4; ++x) {
        const int query = i * 16 + n * 8 + 2 * (block.lane & 3) + (x & 1),
                  key = x < 2 ? block.low : block.high;
        const bool keep =
            key <= query &&
            (block.starts == nullptr ||
             (query < chunk.valid && key >= block.starts[chunk.first + query] - chunk.first));
        if (!keep) p[n][x] = dp[n][x] = 0.0F;
      }
  }

  /// Epilogue. The own rows of v have served everybody: d v leaves through them.
  __device__ __forceinline__ void write_grad_v(const Values& dv) const {
    stage_rows<kHead>(block.v_of(chunk), block.row0, dv, 1.0F, 1.0F, block.lane);
    block.write_gradient(block.a.grad_v, block.v_of(chunk), chunk, kHead / 8);
  }
  /// d y of the keys stays for the sums.
  __device__ __forceinline__ void write_grad_k(const Features& own_phi_k,
                                               const GradFeatures& dphi) const {
    if constexpr (Block::kHasMap) {
      Features grad_y;
      Block::grad_map(grad_y, own_phi_k, dphi, {1.0F, 1.0F});
      store_rows<kFeatures>(block.grad_y_k, block.row0, grad_y, block.lane);
      block.write_map_gradient(block.a.grad_k, grad_y, chunk);
    } else {
      stage_rows<kFeatures>(block.grad_y_k, block.row0, dphi, 1.0F, 1.0F, block.lane);
      block.write_gradient(block.a.grad_k, block.grad_y_k, chunk, block.input_units);
    }
  }

  const Block& block;
  const BackwardChunk& chunk;
};

}  // namespace t2r::kernels::cuda
