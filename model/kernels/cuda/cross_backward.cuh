#pragma once

#include "model/kernels/cuda/cross_common.cuh"

namespace t2r::kernels::cuda {

/// Shared memory of the kernel below, in bytes from its start.
template <int kHead, int kFeatures, int kChunk, bool kMap>
struct CrossQueryBackwardMemory {
  static constexpr int kInput = kMap ? kHead : kFeatures;  // columns of q
  static constexpr int kGradO = kChunk * kInput * 2;
  static constexpr int kStage = kGradO + kChunk * kHead * 2;
  static constexpr int kScaledPhi = 2 * kStage;  // R = phi(q) / denominator
  static constexpr int kGradY = kScaledPhi + kChunk * kFeatures * 2;
  static constexpr int kWeight = kGradY + (kMap ? kChunk * kFeatures * 2 : 0);
  static constexpr int kScratch = kWeight + (kMap ? kFeatures * kHead * 2 : 0);
  static constexpr int kState = kScratch + (kMap ? kChunk * kHead * 2 : 0);
  static constexpr int kZ = kState + 4 * kFeatures * kHead;
  static constexpr int kBias = kZ + 4 * kFeatures;
  static constexpr int kE = kBias + 4 * kFeatures;
  static constexpr int kBytes = kE + 4 * kChunk;
};

/// Gradients of cross_query_kernel, and a block's share of dS, dz and of the queries' d W. With n_t = phi(q_t) . z, D_t the
/// denominator and D'_t = d D_t / d n_t (0 on the floor, else the sign of n_t, or 1):
///
///   e_t = -(d o_t . o_t) D'_t
///   d phi(q)_t = (S d o_t + e_t z) / D_t
///   dS = sum of phi(q_t) d o_t^T / D_t,  dz = sum of phi(q_t) e_t / D_t
///
/// d o . o is recomputed as phi(q) . (S d o) / D, from the very product that it must cancel against, as in causal_backward_kernel.
/// Per chunk: rows: e, d q, R | barrier | dS, dz, d W | barrier.
template <int kHead, int kFeatures, int kChunk, bool kMap>
__global__ void __launch_bounds__(kChunk * 2, 1) cross_query_backward_kernel(const __grid_constant__ CrossArguments a) {
  using Memory = CrossQueryBackwardMemory<kHead, kFeatures, kChunk, kMap>;
  constexpr int kWarps = kChunk / 16, kInput = Memory::kInput, kSteps = kFeatures / 16;
  extern __shared__ __align__(128) unsigned char memory[];
  const uint32_t base = shared_address(memory);
  const float* const z = reinterpret_cast<const float*>(memory + Memory::kZ);
  float* const bias = reinterpret_cast<float*>(memory + Memory::kBias);
  float* const e_shared = reinterpret_cast<float*>(memory + Memory::kE);
  const Tile<kHead> weight{base + Memory::kWeight}, scratch{base + Memory::kScratch};
  const Tile<kHead> s_hi{base + Memory::kState}, s_lo{base + Memory::kState + kFeatures * kHead * 2};
  const Tile<kFeatures> scaled_phi{base + Memory::kScaledPhi}, grad_y_tile{base + Memory::kGradY};
  const Shape& shape = a.shape;
  const CrossBlock block(shape, a.plan.queries, true);
  const int lane = threadIdx.x & 31, warp = threadIdx.x >> 5, row0 = warp * 16, low = row0 + lane / 4, high = low + 8;
  const int features = shape.feature_size, input_units = kMap ? kHead / 8 : (features + 7) / 8;
  const bf16* const q = rows_of(a.q, block.batch, block.head);
  const bf16* const grad_o = rows_of(a.grad_o, block.batch, block.head);
  bf16* const grad_q = mutable_rows_of(a.grad_q, block.batch, block.head);

  const auto stage_of = [&](int chunk) { return base + ((chunk - block.chunk_begin) & 1) * Memory::kStage; };
  const auto copy_chunk = [&](int chunk) {
    if (chunk < block.chunk_end) {
      const int64_t first = int64_t{chunk} * kChunk;
      const int valid = min(kChunk, shape.length - static_cast<int>(first));
      copy_rows_async(Tile<kInput>{stage_of(chunk)}, q + first * a.q.token_stride, a.q.token_stride, row0, valid, input_units, lane);
      copy_rows_async(Tile<kHead>{stage_of(chunk) + Memory::kGradO}, grad_o + first * a.grad_o.token_stride, a.grad_o.token_stride,
                      row0, valid, kHead / 8, lane);
    }
    commit_copies();
  };

  if constexpr (kMap) load_map<kHead, kFeatures, kChunk * 2>(weight, bias, a, block.state_head);
  load_record<kHead, kFeatures, kChunk * 2>(base + Memory::kState, a.state + block.state(shape) * a.plan.record_bytes);
  copy_chunk(block.chunk_begin);
  copy_chunk(block.chunk_begin + 1);
  constexpr int kDzWarp = 0, kDbWarp = 1;
  SharedProduct<kFeatures, kHead, kWarps> ds(warp), dw(warp);
  WeightedColumnSums<kFeatures> sums;  // dz, or d b: each in one warp
  wait_copies<1>();
  __syncthreads();

  for (int chunk = block.chunk_begin; chunk < block.chunk_end; ++chunk) {
    const Tile<kInput> q_tile{stage_of(chunk)};
    const Tile<kHead> grad_o_tile{stage_of(chunk) + Memory::kGradO};
    const int64_t first = int64_t{chunk} * kChunk;
    const int valid = min(kChunk, shape.length - static_cast<int>(first));
    wait_copies<1>();
    __syncwarp();
    uint32_t phi[kSteps][4];
    if constexpr (kMap) {
      float y[kFeatures / 8][4];
      project<kHead, kFeatures>(y, q_tile, weight, row0, lane);
      activate<kFeatures>(phi, y, bias, a.rule.scale, low < valid, high < valid, lane);
    } else {
#pragma unroll
      for (int step = 0; step < kSteps; ++step) q_tile.load_a(phi[step], row0, 2 * step, lane);
    }
    float dphi[kFeatures / 8][4] = {};  // S d o, then d phi(q) times the denominator
    {
      uint32_t own_grad_o[kHead / 16][4];
#pragma unroll
      for (int step = 0; step < kHead / 16; ++step) grad_o_tile.load_a(own_grad_o[step], row0, 2 * step, lane);
      multiply_split_transposed<kFeatures, kHead>(dphi, own_grad_o, s_hi, s_lo, lane);
    }
    float n_low = 0.0F, n_high = 0.0F, inner_low = 0.0F, inner_high = 0.0F;  // inner: d o . numerator
#pragma unroll
    for (int n = 0; n < kFeatures / 8; ++n) {
      const float2 z_pair = *reinterpret_cast<const float2*>(z + 8 * n + 2 * (lane & 3));
      const float2 phi_low = unpack(phi[n / 2][2 * (n & 1)]), phi_high = unpack(phi[n / 2][2 * (n & 1) + 1]);
      n_low = fmaf(phi_low.x, z_pair.x, fmaf(phi_low.y, z_pair.y, n_low));
      n_high = fmaf(phi_high.x, z_pair.x, fmaf(phi_high.y, z_pair.y, n_high));
      inner_low = fmaf(phi_low.x, dphi[n][0], fmaf(phi_low.y, dphi[n][1], inner_low));
      inner_high = fmaf(phi_high.x, dphi[n][2], fmaf(phi_high.y, dphi[n][3], inner_high));
    }
    const Denominator den_low(row_sum(n_low), a.rule, a.absolute), den_high(row_sum(n_high), a.rule, a.absolute);
    const float inverse_low = 1.0F / den_low.value, inverse_high = 1.0F / den_high.value;
    const float e_low = -row_sum(inner_low) * inverse_low * den_low.slope, e_high = -row_sum(inner_high) * inverse_high * den_high.slope;
    if ((lane & 3) == 0) {
      e_shared[low] = e_low;
      e_shared[high] = e_high;
    }
#pragma unroll
    for (int n = 0; n < kFeatures / 8; ++n) {
      const float2 z_pair = *reinterpret_cast<const float2*>(z + 8 * n + 2 * (lane & 3));
      dphi[n][0] = fmaf(e_low, z_pair.x, dphi[n][0]);
      dphi[n][1] = fmaf(e_low, z_pair.y, dphi[n][1]);
      dphi[n][2] = fmaf(e_high, z_pair.x, dphi[n][2]);
      dphi[n][3] = fmaf(e_high, z_pair.y, dphi[n][3]);
    }
    if constexpr (kMap) {
      uint32_t grad_y[kSteps][4];
      activate_back<kFeatures>(grad_y, phi, dphi, inverse_low * a.rule.scale, inverse_high * a.rule.scale);
      store_rows<kFeatures>(grad_y_tile, row0, grad_y, lane);
      float grad[kHead / 8][4];
      project_back<kHead, kFeatures>(grad, grad_y, weight, lane);
      stage_rows<kHead>(scratch, row0, grad, 1.0F, 1.0F, lane);
      write_rows<kHead>(grad_q + first * a.grad_q.token_stride, a.grad_q.token_stride, scratch, row0, row0, valid, kHead / 8, lane);
    } else {
      stage_rows<kFeatures>(scaled_phi, row0, dphi, inverse_low, inverse_high, lane);
      write_rows<kFeatures>(grad_q + first * a.grad_q.token_stride, a.grad_q.token_stride, scaled_phi, row0, row0, valid, input_units, lane);
    }
#pragma unroll
    for (int n = 0; n < kFeatures / 8; ++n) {
      const float2 phi_low = unpack(phi[n / 2][2 * (n & 1)]), phi_high = unpack(phi[n / 2][2 * (n & 1) + 1]);
      scaled_phi.store_pair(low, n, lane & 3, pack(phi_low.x * inverse_low, phi_low.y * inverse_low));
      scaled_phi.store_pair(high, n, lane & 3, pack(phi_high.x * inverse_high, phi_high.y * inverse_high));
    }
    __syncthreads();
    ds.template add<kChunk>(scaled_phi, grad_o_tile, 0, kChunk, lane);
    if (warp == kDzWarp) {
      sums.template add<kChunk>(scaled_phi, 0, kChunk, lane, [&](int row) {
        if (lane >= 8) return 0u;
        uint32_t hi, lo;
        split(e_shared[row], e_shared[row + 1], hi, lo);
        return lane < 4 ? hi : lo;
      });
    }
    if constexpr (kMap) {
      dw.template add<kChunk>(grad_y_tile, q_tile, 0, kChunk, lane);
      if (warp == kDbWarp) {
        const uint32_t ones = ones_column(lane);
        sums.template add<kChunk>(grad_y_tile, 0, kChunk, lane, [ones](int) { return ones; });
      }
    }
    __syncthreads();
    copy_chunk(chunk + 2);
  }

  const int matrix = features * kHead;
  float* const part = a.sums + block.part * a.plan.sums_floats;
  write_product<kHead>(part, ds, features, lane);
  if (warp == kDzWarp) sums.for_each(lane, [&](int feature, float sum) { if (feature < features) part[matrix + feature] = sum; });
  if constexpr (kMap) {
    float* const map_part = a.query_parts + block.part * a.plan.sums_floats;
    const float unscale = 1.0F / a.rule.scale;
    write_product<kHead>(map_part, dw, features, lane);
    if (warp == kDbWarp) {
      sums.for_each(lane, [&](int feature, float sum) { if (feature < features) map_part[matrix + feature] = sum * unscale; });
    }
  }
}

/// Shared memory of the kernel below, in bytes from its start.
template <int kHead, int kFeatures, int kChunk, bool kMap>
struct CrossSourceBackwardMemory {
  static constexpr int kInput = kMap ? kHead : kFeatures;  // columns of k
  static constexpr int kV = kChunk * kInput * 2;
  static constexpr int kStage = kV + kChunk * kHead * 2;
  static constexpr int kGradY = 2 * kStage;
  static constexpr int kWeight = kGradY + (kMap ? kChunk * kFeatures * 2 : 0);
  static constexpr int kState = kWeight + (kMap ? kFeatures * kHead * 2 : 0);  // a record: dS hi, dS lo, dz
  static constexpr int kZ = kState + 4 * kFeatures * kHead;
  static constexpr int kBias = kZ + 4 * kFeatures;
  static constexpr int kBytes = kBias + 4 * kFeatures;
};

/// Gradients of cross_sums_kernel: d phi(k)_s = dS v_s + dz, d v_s = dS^T phi(k)_s, both 0 for padding; and a block's share of the
/// source's d W. Per chunk: rows | barrier | d W | barrier; without a map every warp walks its own rows.
template <int kHead, int kFeatures, int kChunk, bool kMap>
__global__ void __launch_bounds__(kChunk * 2, 1) cross_source_backward_kernel(const __grid_constant__ CrossArguments a) {
  using Memory = CrossSourceBackwardMemory<kHead, kFeatures, kChunk, kMap>;
  constexpr int kWarps = kChunk / 16, kInput = Memory::kInput, kSteps = kFeatures / 16;
  extern __shared__ __align__(128) unsigned char memory[];
  const uint32_t base = shared_address(memory);
  const float* const dz = reinterpret_cast<const float*>(memory + Memory::kZ);
  float* const bias = reinterpret_cast<float*>(memory + Memory::kBias);
  const Tile<kHead> weight{base + Memory::kWeight};
  const Tile<kHead> ds_hi{base + Memory::kState}, ds_lo{base + Memory::kState + kFeatures * kHead * 2};
  const Tile<kFeatures> grad_y_tile{base + Memory::kGradY};
  const Shape& shape = a.shape;
  const CrossBlock block(shape, a.plan.source, false);
  const int lane = threadIdx.x & 31, warp = threadIdx.x >> 5, row0 = warp * 16;
  const int features = shape.feature_size, input_units = kMap ? kHead / 8 : (features + 7) / 8;
  const bf16* const k = rows_of(a.k, block.batch, block.state_head / (shape.state_heads / shape.key_heads));
  const bf16* const v = rows_of(a.v, block.batch, block.state_head / (shape.state_heads / shape.value_heads));
  bf16* const grad_k = mutable_rows_of(a.grad_k, block.batch, block.state_head);
  bf16* const grad_v = mutable_rows_of(a.grad_v, block.batch, block.state_head);
  const unsigned char* const mask = a.source_mask == nullptr ? nullptr : a.source_mask + int64_t{block.batch} * a.source_length;

  const auto stage_of = [&](int chunk) { return base + ((chunk - block.chunk_begin) & 1) * Memory::kStage; };
  const auto copy_chunk = [&](int chunk) {
    if (chunk < block.chunk_end) {
      const int64_t first = int64_t{chunk} * kChunk;
      const int valid = min(kChunk, a.source_length - static_cast<int>(first));
      const unsigned char* const exists = mask == nullptr ? nullptr : mask + first;
      copy_source_rows_async(Tile<kInput>{stage_of(chunk)}, k + first * a.k.token_stride, a.k.token_stride, exists, row0, valid, input_units, lane);
      copy_source_rows_async(Tile<kHead>{stage_of(chunk) + Memory::kV}, v + first * a.v.token_stride, a.v.token_stride, exists, row0,
                             valid, kHead / 8, lane);
    }
    commit_copies();
  };

  if constexpr (kMap) load_map<kHead, kFeatures, kChunk * 2>(weight, bias, a, block.state_head);
  load_record<kHead, kFeatures, kChunk * 2>(base + Memory::kState, a.grad_state + block.state(shape) * a.plan.record_bytes);
  copy_chunk(block.chunk_begin);
  copy_chunk(block.chunk_begin + 1);
  SharedProduct<kFeatures, kHead, kWarps> dw(warp);
  WeightedColumnSums<kFeatures> db;  // of warp 0
  wait_copies<1>();
  __syncthreads();

  for (int chunk = block.chunk_begin; chunk < block.chunk_end; ++chunk) {
    const Tile<kInput> k_tile{stage_of(chunk)};
    const Tile<kHead> v_tile{stage_of(chunk) + Memory::kV};
    const int64_t first = int64_t{chunk} * kChunk;
    const int valid = min(kChunk, a.source_length - static_cast<int>(first));
    const int low = static_cast<int>(first) + row0 + lane / 4, high = low + 8;
    const bool low_exists = low < a.source_length && (mask == nullptr || mask[low] != 0);
    const bool high_exists = high < a.source_length && (mask == nullptr || mask[high] != 0);
    wait_copies<1>();
    __syncwarp();
    uint32_t phi[kSteps][4];
    if constexpr (kMap) {
      float y[kFeatures / 8][4];
      project<kHead, kFeatures>(y, k_tile, weight, row0, lane);
      activate<kFeatures>(phi, y, bias, 1.0F, low_exists, high_exists, lane);
    } else {
#pragma unroll
      for (int step = 0; step < kSteps; ++step) k_tile.load_a(phi[step], row0, 2 * step, lane);
    }
    float dphi[kFeatures / 8][4];
#pragma unroll
    for (int n = 0; n < kFeatures / 8; ++n) {
      const float2 dz_pair = *reinterpret_cast<const float2*>(dz + 8 * n + 2 * (lane & 3));
      dphi[n][0] = dphi[n][2] = dz_pair.x;
      dphi[n][1] = dphi[n][3] = dz_pair.y;
    }
    {
      uint32_t own_v[kHead / 16][4];
#pragma unroll
      for (int step = 0; step < kHead / 16; ++step) v_tile.load_a(own_v[step], row0, 2 * step, lane);
      multiply_split_transposed<kFeatures, kHead>(dphi, own_v, ds_hi, ds_lo, lane);
    }
    {  // the own rows of v have served: d v leaves through them
      float grad[kHead / 8][4] = {};
      multiply_split<kSteps, kHead>(grad, phi, ds_hi, ds_lo, lane);
      __syncwarp();
      stage_rows<kHead>(v_tile, row0, grad, 1.0F, 1.0F, lane);
      write_rows<kHead>(grad_v + first * a.grad_v.token_stride, a.grad_v.token_stride, v_tile, row0, row0, valid, kHead / 8, lane);
    }
    if constexpr (kMap) {
      uint32_t grad_y[kSteps][4];
      activate_back<kFeatures>(grad_y, phi, dphi, 1.0F, 1.0F);
      store_rows<kFeatures>(grad_y_tile, row0, grad_y, lane);
      float grad[kHead / 8][4];
      project_back<kHead, kFeatures>(grad, grad_y, weight, lane);
      stage_rows<kHead>(v_tile, row0, grad, 1.0F, 1.0F, lane);
      write_rows<kHead>(grad_k + first * a.grad_k.token_stride, a.grad_k.token_stride, v_tile, row0, row0, valid, kHead / 8, lane);
      __syncthreads();
      dw.template add<kChunk>(grad_y_tile, k_tile, 0, kChunk, lane);
      if (warp == 0) {
        const uint32_t ones = ones_column(lane);
        db.template add<kChunk>(grad_y_tile, 0, kChunk, lane, [ones](int) { return ones; });
      }
      __syncthreads();
    } else {
      stage_rows<kFeatures>(k_tile, row0, dphi, low_exists ? 1.0F : 0.0F, high_exists ? 1.0F : 0.0F, lane);
      write_rows<kFeatures>(grad_k + first * a.grad_k.token_stride, a.grad_k.token_stride, k_tile, row0, row0, valid, input_units, lane);
    }
    copy_chunk(chunk + 2);
  }

  if constexpr (kMap) {
    float* const part = a.source_parts + block.part * a.plan.sums_floats;
    write_product<kHead>(part, dw, features, lane);
    if (warp == 0) db.for_each(lane, [&](int feature, float sum) { if (feature < features) part[features * kHead + feature] = sum; });
  }
}

}  // namespace t2r::kernels::cuda
