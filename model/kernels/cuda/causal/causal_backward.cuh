#pragma once

#include "model/kernels/cuda/causal/causal_common.cuh"
#include "model/kernels/cuda/causal/causal_memory.h"

namespace t2r::kernels::cuda {

/// Gradients of causal_forward_kernel. With a_ts = phi(q_t) . phi(k_s), D_t the denominator, r_t =
/// phi(q_t) / D_t:
///
///   e_t = -(d o_t . o_t) (0 where D_t is the floor)
///   d phi(q)_t = (sum_s (d o_t . v_s + e_t) phi(k)_s) / D_t = (inside the chunk + S d o_t + e_t z)
///       / D_t
///   d phi(k)_s = sum_t r_t (d o_t . v_s + e_t)              =  inside the chunk + dS v_s + dz
///   d v_s      = sum_t (r_t . phi(k)_s) d o_t               =  inside the chunk + dS^T phi(k)_s
///   dS = sum of r_t d o_t^T and dz = sum of r_t e_t over the later chunks
///
/// d o . o is recomputed from the very products that it must cancel against (d o . v_s summed with
/// the weights), so v's mean drops out, whatever its size; o itself is not read. Chunks are walked
/// from the last to the first; S comes from forward's records. Per chunk: features | rows: e, d q,
/// R | columns: d k, d v | dS, d W; barriers between the four.
template <int kHead, int kFeatures, int kChunk, bool kMap, int kStages, BackwardPart kPart>
__global__ void __launch_bounds__(kChunk * 2, 1)
    causal_backward_kernel(const __grid_constant__ CausalArguments a) {
  using Memory = BackwardMemory<kHead, kFeatures, kChunk, kMap, kStages>;
  constexpr int kWarps = kChunk / 16, kInput = Memory::kInput, kSteps = kFeatures / 16,
                kThreads = kChunk * 2;
  constexpr bool kRowPart = kPart != BackwardPart::kColumns,
                 kColumnPart = kPart != BackwardPart::kRows;
  extern __shared__ __align__(128) unsigned char memory[];
  const uint32_t base = shared_address(memory);
  const Tile<kHead> weight{base + Memory::kWeight};
  const Tile<kFeatures> scaled_phi_q{base + Memory::kScaledPhiQ}, grad_y_q{base + Memory::kGradYQ};
  const Tile<kHead> s_hi{base + Memory::kState},
      s_lo{base + Memory::kState + kFeatures * kHead * 2};
  const Tile<kHead> ds_hi{base + Memory::kGradState},
      ds_lo{base + Memory::kGradState + kFeatures * kHead * 2};
  const Tile<kHead> scratch{base + Memory::kScratch};
  const float* const z =
      reinterpret_cast<const float*>(memory + Memory::kState + 4 * kFeatures * kHead);
  float* const dz_shared =
      reinterpret_cast<float*>(memory + Memory::kGradState + 4 * kFeatures * kHead);
  float* const bias = reinterpret_cast<float*>(memory + Memory::kBias);
  float* const e_shared = reinterpret_cast<float*>(memory + Memory::kE);

  const Shape& shape = a.shape;
  const int item = blockIdx.x, segment = blockIdx.y;
  const int batch = item / shape.query_heads, head = item % shape.query_heads;
  const int group = shape.query_heads / shape.state_heads, state_head = head / group;
  const int tid = threadIdx.x, lane = tid & 31, warp = tid >> 5;
  const int block = row_block_of<kWarps>(warp), row0 = block * 16;
  const int low = row0 + lane / 4, high = low + 8;
  const int features = shape.feature_size;
  const int chunk_begin = segment * a.plan.chunks_per_segment;
  const int chunk_end = min(chunk_begin + a.plan.chunks_per_segment, a.plan.chunks);
  const int input_units = kMap ? kHead / 8 : (features + 7) / 8;

  const bf16* const q = rows_of(a.q, batch, head);
  const bf16* const k = rows_of(a.k, batch, state_head / (shape.state_heads / shape.key_heads));
  const bf16* const v = rows_of(a.v, batch, state_head / (shape.state_heads / shape.value_heads));
  const bf16* const grad_o = rows_of(a.grad_o, batch, head);
  const int* const starts =
      a.document_start == nullptr ? nullptr : a.document_start + int64_t{batch} * shape.length;
  float* const saved_denominator =
      a.row_values == nullptr ? nullptr : a.row_values + int64_t{item} * 2 * shape.length;
  float* const saved_e = saved_denominator + shape.length;

  const auto copy_chunk = [&](int chunk) {
    if (chunk >= chunk_begin) {
      const uint32_t stage = base + (chunk % kStages) * Memory::kStage;
      const int64_t first = int64_t{chunk} * kChunk;
      const int valid = min(kChunk, shape.length - static_cast<int>(first));
      copy_rows_async(Tile<kInput>{stage + Memory::kQ},
                      q + first * a.q.token_stride,
                      a.q.token_stride,
                      row0,
                      valid,
                      input_units,
                      lane);
      copy_rows_async(Tile<kInput>{stage + Memory::kK},
                      k + first * a.k.token_stride,
                      a.k.token_stride,
                      row0,
                      valid,
                      input_units,
                      lane);
      copy_rows_async(Tile<kHead>{stage + Memory::kV},
                      v + first * a.v.token_stride,
                      a.v.token_stride,
                      row0,
                      valid,
                      kHead / 8,
                      lane);
      copy_rows_async(Tile<kHead>{stage + Memory::kGradO},
                      grad_o + first * a.grad_o.token_stride,
                      a.grad_o.token_stride,
                      row0,
                      valid,
                      kHead / 8,
                      lane);
    }
    commit_copies();
  };
  const auto copy_state = [&](int chunk) {
    if (kRowPart && chunk >= chunk_begin) {
      const bool exists = chunk > 0 || a.initial_s != nullptr;
      const unsigned char* const record =
          a.states + (int64_t{item} * a.plan.chunks + chunk) * a.plan.state_record_bytes;
      for (int i = tid; i < Memory::kRecord / 16; i += kThreads) {
        copy_async_16(base + Memory::kState + 16 * i, record + (exists ? 16 * i : 0), exists);
      }
    }
    commit_copies();
  };

  if constexpr (kMap) {
    copy_weight_async<kHead, kFeatures, kThreads>(
        [&](int row, int unit) { return weight.at(row, unit); }, a.weight, state_head, features);
    load_bias<kFeatures, kThreads>(bias, a.bias, state_head, features);
  }
  copy_state(chunk_end - 1);
  copy_chunk(chunk_end - 1);

  // What later tokens send back.
  constexpr int kDzWarp = 0, kDbQWarp = 1 % kWarps, kDbKWarp = 2 % kWarps;
  SharedProduct<kFeatures, kHead, kWarps> ds(warp), dw(warp);
  WeightedColumnSums<kFeatures>
      sums;  // dz, or d b of the queries, or d b of the keys: each in one warp
  if constexpr (kColumnPart) {
    const auto add_state = [&](const float* from_s, const float* from_z) {
      ds.for_each_pair(lane, [&](int row, int column, float* pair) {
        if (row >= features) return;
        pair[0] += from_s[row * kHead + column];
        pair[1] += from_s[row * kHead + column + 1];
      });
      if (warp == kDzWarp && (lane & 3) == 0) {
#pragma unroll
        for (int m = 0; m < kFeatures / 16; ++m) {
          const int feature = m * 16 + lane / 4;
          if (feature < features) sums.value[m][0] += from_z[feature];
          if (feature + 8 < features) sums.value[m][2] += from_z[feature + 8];
        }
      }
    };
    if (a.plan.segments > 1) {
      const float* const part =
          a.sums + (int64_t{item} * a.plan.segments + segment) * a.plan.sums_floats;
      add_state(part, part + features * kHead);
    } else if (a.grad_final_s != nullptr && head % group == 0) {
      const int64_t state = int64_t{batch} * shape.state_heads + state_head;
      add_state(a.grad_final_s + state * features * kHead, a.grad_final_z + state * features);
    }
  }
  const auto publish_state = [&] {
    if constexpr (kColumnPart) {
      ds.store_split(ds_hi, ds_lo, lane);
      if (warp == kDzWarp)
        sums.for_each(lane, [&](int feature, float sum) { dz_shared[feature] = sum; });
    }
  };
  publish_state();

  for (int chunk = chunk_end - 1; chunk >= chunk_begin; --chunk) {
    const uint32_t stage = base + (chunk % kStages) * Memory::kStage;
    const Tile<kInput> q_tile{stage + Memory::kQ}, k_tile{stage + Memory::kK};
    const Tile<kHead> v_tile{stage + Memory::kV}, grad_o_tile{stage + Memory::kGradO};
    const Tile<kFeatures> phi_k{kMap ? base + Memory::kPhiK : stage + Memory::kK};
    const Tile<kFeatures> grad_y_k{base + Memory::kPhiK};
    const int first = chunk * kChunk, valid = min(kChunk, shape.length - first);

    wait_copies<0>();
    if (chunk == chunk_end - 1) {
      __syncthreads();
    } else {
      __syncwarp();
    }                                      // the map's weights are everybody's
    int last_start = 0, carried = kChunk;  // rows from last_start on reach beyond the chunk; rows
                                           // before `carried` see before it
    CausalMask mask{-1, -1};
    if (starts != nullptr) {
      last_start = starts[first + valid - 1] - first;
      mask = {starts[min(first + low, shape.length - 1)] - first,
              starts[min(first + high, shape.length - 1)] - first};
    }

    uint32_t phi_q[kSteps][4], own_phi_k[kSteps][4];
    if constexpr (kMap) {
      float y[kFeatures / 8][4];
      project<kHead, kFeatures>(y, k_tile, weight, row0, lane);
      activate<kFeatures>(own_phi_k, y, bias, 1.0F, low < valid, high < valid, lane);
      store_rows<kFeatures>(phi_k, row0, own_phi_k, lane);
      project<kHead, kFeatures>(y, q_tile, weight, row0, lane);
      activate<kFeatures>(phi_q, y, bias, a.rule.scale, low < valid, high < valid, lane);
    } else {
#pragma unroll
      for (int step = 0; step < kSteps; ++step) {
        q_tile.load_a(phi_q[step], row0, 2 * step, lane);
        k_tile.load_a(own_phi_k[step], row0, 2 * step, lane);
      }
    }
    float inverse_low = 0.0F, inverse_high = 0.0F;
    if constexpr (!kRowPart) {
      const float den_low = low < valid ? saved_denominator[first + low] : 1.0F;
      const float den_high = high < valid ? saved_denominator[first + high] : 1.0F;
      inverse_low = 1.0F / den_low;
      inverse_high = 1.0F / den_high;
      if ((lane & 3) == 0) {
        e_shared[low] = low < valid ? saved_e[first + low] : 0.0F;
        e_shared[high] = high < valid ? saved_e[first + high] : 0.0F;
      }
    }
    __syncthreads();
    if constexpr (kStages == 2) copy_chunk(chunk - 1);

    if constexpr (kRowPart) {
      constexpr int kBlocks = kChunk / 16;
      float dp[kBlocks][2][4];
      float dphi[kFeatures / 8][4] = {};  // S d o, then d phi(q)
      float den_low = 0.0F, den_high = 0.0F, inner_low = 0.0F,
            inner_high = 0.0F;  // inner: d o . numerator
      {
        uint32_t own_grad_o[kHead / 16][4];
#pragma unroll
        for (int step = 0; step < kHead / 16; ++step)
          grad_o_tile.load_a(own_grad_o[step], row0, 2 * step, lane);
#pragma unroll
        for (int step = 0; step < kHead / 16; ++step) {
#pragma unroll
          for (int n = 0; n < kFeatures / 16; ++n) {
            uint32_t b[4];
            s_hi.load_b(b, 16 * n, 2 * step, lane);
            mma(dphi[2 * n], own_grad_o[step], b[0], b[1]);
            mma(dphi[2 * n + 1], own_grad_o[step], b[2], b[3]);
            s_lo.load_b(b, 16 * n, 2 * step, lane);
            mma(dphi[2 * n], own_grad_o[step], b[0], b[1]);
            mma(dphi[2 * n + 1], own_grad_o[step], b[2], b[3]);
          }
        }
#pragma unroll
        for (int j = 0; j < kBlocks; ++j) {
          if (j > block) continue;
          float p[2][4] = {};
#pragma unroll
          for (int n = 0; n < 2; ++n)
#pragma unroll
            for (int i = 0; i < 4; ++i) dp[j][n][i] = 0.0F;
#pragma unroll
          for (int step = 0; step < kSteps; ++step) {
            uint32_t b[4];
            phi_k.load_b(b, j * 16, 2 * step, lane);
            mma(p[0], phi_q[step], b[0], b[1]);
            mma(p[1], phi_q[step], b[2], b[3]);
          }
#pragma unroll
          for (int step = 0; step < kHead / 16; ++step) {
            uint32_t b[4];
            v_tile.load_b(b, j * 16, 2 * step, lane);
            mma(dp[j][0], own_grad_o[step], b[0], b[1]);
            mma(dp[j][1], own_grad_o[step], b[2], b[3]);
          }
          if (j == block || starts != nullptr) {
#pragma unroll
            for (int n = 0; n < 2; ++n)
#pragma unroll
              for (int i = 0; i < 4; ++i) {
                const int column = j * 16 + n * 8 + 2 * (lane & 3) + (i & 1);
                if (!mask.keep(i < 2 ? low : high, column, i >= 2)) p[n][i] = 0.0F;
              }
          }
#pragma unroll
          for (int n = 0; n < 2; ++n) {
            den_low += p[n][0] + p[n][1];
            den_high += p[n][2] + p[n][3];
            inner_low = fmaf(p[n][0], dp[j][n][0], fmaf(p[n][1], dp[j][n][1], inner_low));
            inner_high = fmaf(p[n][2], dp[j][n][2], fmaf(p[n][3], dp[j][n][3], inner_high));
          }
        }
      }
      const bool before_low = mask.start_low < 0,
                 before_high = mask.start_high < 0;  // do the rows see the carried state?
#pragma unroll
      for (int n = 0; n < kFeatures / 8; ++n) {
        const float2 z_pair = *reinterpret_cast<const float2*>(z + 8 * n + 2 * (lane & 3));
        const float2 phi_low = unpack(phi_q[n / 2][2 * (n & 1)]),
                     phi_high = unpack(phi_q[n / 2][2 * (n & 1) + 1]);
        if (before_low) {
          den_low = fmaf(phi_low.x, z_pair.x, fmaf(phi_low.y, z_pair.y, den_low));
          inner_low = fmaf(phi_low.x, dphi[n][0], fmaf(phi_low.y, dphi[n][1], inner_low));
        } else {
          dphi[n][0] = dphi[n][1] = 0.0F;
        }
        if (before_high) {
          den_high = fmaf(phi_high.x, z_pair.x, fmaf(phi_high.y, z_pair.y, den_high));
          inner_high = fmaf(phi_high.x, dphi[n][2], fmaf(phi_high.y, dphi[n][3], inner_high));
        } else {
          dphi[n][2] = dphi[n][3] = 0.0F;
        }
      }
      den_low = row_sum(den_low) + a.rule.added;
      den_high = row_sum(den_high) + a.rule.added;
      inverse_low = 1.0F / fmaxf(den_low, a.rule.floor);
      inverse_high = 1.0F / fmaxf(den_high, a.rule.floor);
      inner_low = row_sum(inner_low);
      inner_high = row_sum(inner_high);
      const float e_low = den_low < a.rule.floor ? 0.0F : -inner_low * inverse_low;
      const float e_high = den_high < a.rule.floor ? 0.0F : -inner_high * inverse_high;
      if ((lane & 3) == 0) {
        e_shared[low] = e_low;
        e_shared[high] = e_high;
        if constexpr (kPart == BackwardPart::kRows) {
          if (low < valid) {
            saved_denominator[first + low] = fmaxf(den_low, a.rule.floor);
            saved_e[first + low] = e_low;
          }
          if (high < valid) {
            saved_denominator[first + high] = fmaxf(den_high, a.rule.floor);
            saved_e[first + high] = e_high;
          }
        }
      }
#pragma unroll
      for (int n = 0; n < kFeatures / 8; ++n) {
        const float2 z_pair = *reinterpret_cast<const float2*>(z + 8 * n + 2 * (lane & 3));
        if (before_low) {
          dphi[n][0] = fmaf(e_low, z_pair.x, dphi[n][0]);
          dphi[n][1] = fmaf(e_low, z_pair.y, dphi[n][1]);
        }
        if (before_high) {
          dphi[n][2] = fmaf(e_high, z_pair.x, dphi[n][2]);
          dphi[n][3] = fmaf(e_high, z_pair.y, dphi[n][3]);
        }
      }
#pragma unroll
      for (int j = 0; j < kBlocks; ++j) {
        if (j > block) continue;
#pragma unroll
        for (int n = 0; n < 2; ++n)
#pragma unroll
          for (int i = 0; i < 4; ++i) dp[j][n][i] += i < 2 ? e_low : e_high;
        if (j == block || starts != nullptr) {
#pragma unroll
          for (int n = 0; n < 2; ++n)
#pragma unroll
            for (int i = 0; i < 4; ++i) {
              const int column = j * 16 + n * 8 + 2 * (lane & 3) + (i & 1);
              if (!mask.keep(i < 2 ? low : high, column, i >= 2)) dp[j][n][i] = 0.0F;
            }
        }
        const uint32_t weights[4] = {pack(dp[j][0][0], dp[j][0][1]),
                                     pack(dp[j][0][2], dp[j][0][3]),
                                     pack(dp[j][1][0], dp[j][1][1]),
                                     pack(dp[j][1][2], dp[j][1][3])};
#pragma unroll
        for (int n = 0; n < kFeatures / 16; ++n) {
          uint32_t b[4];
          phi_k.load_b_transposed(b, j * 16, 2 * n, lane);
          mma(dphi[2 * n], weights, b[0], b[1]);
          mma(dphi[2 * n + 1], weights, b[2], b[3]);
        }
      }
      if constexpr (kMap) {
        uint32_t grad_y[kSteps][4];
        const float scale_low = inverse_low * a.rule.scale,
                    scale_high = inverse_high * a.rule.scale;
#pragma unroll
        for (int n = 0; n < kFeatures / 8; ++n) {
          const float2 phi_low = unpack(phi_q[n / 2][2 * (n & 1)]),
                       phi_high = unpack(phi_q[n / 2][2 * (n & 1) + 1]);
          grad_y[n / 2][2 * (n & 1)] = pack(phi_low.x > 0.0F ? dphi[n][0] * scale_low : 0.0F,
                                            phi_low.y > 0.0F ? dphi[n][1] * scale_low : 0.0F);
          grad_y[n / 2][2 * (n & 1) + 1] = pack(phi_high.x > 0.0F ? dphi[n][2] * scale_high : 0.0F,
                                                phi_high.y > 0.0F ? dphi[n][3] * scale_high : 0.0F);
        }
        store_rows<kFeatures>(grad_y_q, row0, grad_y, lane);
        float grad[kHead / 8][4] = {};
#pragma unroll
        for (int step = 0; step < kSteps; ++step)
#pragma unroll
          for (int n = 0; n < kHead / 16; ++n) {
            uint32_t b[4];
            weight.load_b_transposed(b, step * 16, 2 * n, lane);
            mma(grad[2 * n], grad_y[step], b[0], b[1]);
            mma(grad[2 * n + 1], grad_y[step], b[2], b[3]);
          }
        stage_rows<kHead>(scratch, row0, grad, 1.0F, 1.0F, lane);
        write_rows<kHead>(mutable_rows_of(a.grad_q, batch, head) + first * a.grad_q.token_stride,
                          a.grad_q.token_stride,
                          scratch,
                          row0,
                          row0,
                          valid,
                          kHead / 8,
                          lane);
      } else {
        stage_rows<kFeatures>(scaled_phi_q, row0, dphi, inverse_low, inverse_high, lane);
        write_rows<kFeatures>(
            mutable_rows_of(a.grad_q, batch, head) + first * a.grad_q.token_stride,
            a.grad_q.token_stride,
            scaled_phi_q,
            row0,
            row0,
            valid,
            input_units,
            lane);
      }
    }
#pragma unroll
    for (int n = 0; n < kFeatures / 8; ++n) {
      const float2 phi_low = unpack(phi_q[n / 2][2 * (n & 1)]),
                   phi_high = unpack(phi_q[n / 2][2 * (n & 1) + 1]);
      scaled_phi_q.store_pair(
          low, n, lane & 3, pack(phi_low.x * inverse_low, phi_low.y * inverse_low));
      scaled_phi_q.store_pair(
          high, n, lane & 3, pack(phi_high.x * inverse_high, phi_high.y * inverse_high));
    }
    __syncthreads();
    if constexpr (kStages == 2) copy_state(chunk - 1);

    if constexpr (kColumnPart) {
      float dv[kHead / 8][4] = {};
      float dphi[kFeatures / 8][4];
      uint32_t own_v[kHead / 16][4];
#pragma unroll
      for (int step = 0; step < kHead / 16; ++step)
        v_tile.load_a(own_v[step], row0, 2 * step, lane);
#pragma unroll
      for (int n = 0; n < kFeatures / 8; ++n) {
        const float2 dz_pair = *reinterpret_cast<const float2*>(dz_shared + 8 * n + 2 * (lane & 3));
        dphi[n][0] = dphi[n][2] = dz_pair.x;
        dphi[n][1] = dphi[n][3] = dz_pair.y;
      }
#pragma unroll
      for (int step = 0; step < kHead / 16; ++step)
#pragma unroll
        for (int n = 0; n < kFeatures / 16; ++n) {
          uint32_t b[4];
          ds_hi.load_b(b, 16 * n, 2 * step, lane);
          mma(dphi[2 * n], own_v[step], b[0], b[1]);
          mma(dphi[2 * n + 1], own_v[step], b[2], b[3]);
          ds_lo.load_b(b, 16 * n, 2 * step, lane);
          mma(dphi[2 * n], own_v[step], b[0], b[1]);
          mma(dphi[2 * n + 1], own_v[step], b[2], b[3]);
        }
#pragma unroll
      for (int step = 0; step < kSteps; ++step)
#pragma unroll
        for (int n = 0; n < kHead / 16; ++n) {
          uint32_t b[4];
          ds_hi.load_b_transposed(b, step * 16, 2 * n, lane);
          mma(dv[2 * n], own_phi_k[step], b[0], b[1]);
          mma(dv[2 * n + 1], own_phi_k[step], b[2], b[3]);
          ds_lo.load_b_transposed(b, step * 16, 2 * n, lane);
          mma(dv[2 * n], own_phi_k[step], b[0], b[1]);
          mma(dv[2 * n + 1], own_phi_k[step], b[2], b[3]);
        }
      if (starts !=
          nullptr) {  // rows of documents that end inside the chunk get nothing from later chunks
        if (low < last_start) {
#pragma unroll
          for (auto& tile : dphi) tile[0] = tile[1] = 0.0F;
#pragma unroll
          for (auto& tile : dv) tile[0] = tile[1] = 0.0F;
        }
        if (high < last_start) {
#pragma unroll
          for (auto& tile : dphi) tile[2] = tile[3] = 0.0F;
#pragma unroll
          for (auto& tile : dv) tile[2] = tile[3] = 0.0F;
        }
      }
      for (int i = block; i < kChunk / 16;
           ++i) {  // rows of the block are keys, columns are queries
        float p[2][4] = {}, dp[2][4];
#pragma unroll
        for (int n = 0; n < 2; ++n) {
          const float2 e_pair =
              *reinterpret_cast<const float2*>(e_shared + i * 16 + 8 * n + 2 * (lane & 3));
          dp[n][0] = dp[n][2] = e_pair.x;
          dp[n][1] = dp[n][3] = e_pair.y;
        }
#pragma unroll
        for (int step = 0; step < kSteps; ++step) {
          uint32_t b[4];
          scaled_phi_q.load_b(b, i * 16, 2 * step, lane);
          mma(p[0], own_phi_k[step], b[0], b[1]);
          mma(p[1], own_phi_k[step], b[2], b[3]);
        }
#pragma unroll
        for (int step = 0; step < kHead / 16; ++step) {
          uint32_t b[4];
          grad_o_tile.load_b(b, i * 16, 2 * step, lane);
          mma(dp[0], own_v[step], b[0], b[1]);
          mma(dp[1], own_v[step], b[2], b[3]);
        }
        if (i == block || starts != nullptr) {
#pragma unroll
          for (int n = 0; n < 2; ++n)
#pragma unroll
            for (int x = 0; x < 4; ++x) {
              const int query = i * 16 + n * 8 + 2 * (lane & 3) + (x & 1), key = x < 2 ? low : high;
              const bool keep =
                  key <= query &&
                  (starts == nullptr || (query < valid && key >= starts[first + query] - first));
              if (!keep) p[n][x] = dp[n][x] = 0.0F;
            }
        }
        const uint32_t weights[4] = {pack(p[0][0], p[0][1]),
                                     pack(p[0][2], p[0][3]),
                                     pack(p[1][0], p[1][1]),
                                     pack(p[1][2], p[1][3])};
        const uint32_t grad_weights[4] = {pack(dp[0][0], dp[0][1]),
                                          pack(dp[0][2], dp[0][3]),
                                          pack(dp[1][0], dp[1][1]),
                                          pack(dp[1][2], dp[1][3])};
#pragma unroll
        for (int n = 0; n < kHead / 16; ++n) {
          uint32_t b[4];
          grad_o_tile.load_b_transposed(b, i * 16, 2 * n, lane);
          mma(dv[2 * n], weights, b[0], b[1]);
          mma(dv[2 * n + 1], weights, b[2], b[3]);
        }
#pragma unroll
        for (int n = 0; n < kFeatures / 16; ++n) {
          uint32_t b[4];
          scaled_phi_q.load_b_transposed(b, i * 16, 2 * n, lane);
          mma(dphi[2 * n], grad_weights, b[0], b[1]);
          mma(dphi[2 * n + 1], grad_weights, b[2], b[3]);
        }
      }
      // The own rows of v have served everybody: d v leaves through them.
      stage_rows<kHead>(v_tile, row0, dv, 1.0F, 1.0F, lane);
      write_rows<kHead>(mutable_rows_of(a.grad_v, batch, head) + first * a.grad_v.token_stride,
                        a.grad_v.token_stride,
                        v_tile,
                        row0,
                        row0,
                        valid,
                        kHead / 8,
                        lane);
      if constexpr (kMap) {
        uint32_t grad_y[kSteps][4];
#pragma unroll
        for (int n = 0; n < kFeatures / 8; ++n) {
          const float2 phi_low = unpack(own_phi_k[n / 2][2 * (n & 1)]),
                       phi_high = unpack(own_phi_k[n / 2][2 * (n & 1) + 1]);
          grad_y[n / 2][2 * (n & 1)] =
              pack(phi_low.x > 0.0F ? dphi[n][0] : 0.0F, phi_low.y > 0.0F ? dphi[n][1] : 0.0F);
          grad_y[n / 2][2 * (n & 1) + 1] =
              pack(phi_high.x > 0.0F ? dphi[n][2] : 0.0F, phi_high.y > 0.0F ? dphi[n][3] : 0.0F);
        }
        store_rows<kFeatures>(grad_y_k, row0, grad_y, lane);
        float grad[kHead / 8][4] = {};
#pragma unroll
        for (int step = 0; step < kSteps; ++step)
#pragma unroll
          for (int n = 0; n < kHead / 16; ++n) {
            uint32_t b[4];
            weight.load_b_transposed(b, step * 16, 2 * n, lane);
            mma(grad[2 * n], grad_y[step], b[0], b[1]);
            mma(grad[2 * n + 1], grad_y[step], b[2], b[3]);
          }
        stage_rows<kHead>(scratch, row0, grad, 1.0F, 1.0F, lane);
        write_rows<kHead>(mutable_rows_of(a.grad_k, batch, head) + first * a.grad_k.token_stride,
                          a.grad_k.token_stride,
                          scratch,
                          row0,
                          row0,
                          valid,
                          kHead / 8,
                          lane);
      } else {
        stage_rows<kFeatures>(grad_y_k, row0, dphi, 1.0F, 1.0F, lane);
        write_rows<kFeatures>(
            mutable_rows_of(a.grad_k, batch, head) + first * a.grad_k.token_stride,
            a.grad_k.token_stride,
            grad_y_k,
            row0,
            row0,
            valid,
            input_units,
            lane);
      }
      __syncthreads();
    }

    if (starts != nullptr) {
      carried =
          __syncthreads_count(tid < valid && starts[first + tid] < first);  // a prefix of the rows
      if (last_start >= 0) {
        ds.clear();
        if (warp == kDzWarp) sums.clear();
      }
    }
    ds.template add<kChunk>(scaled_phi_q, grad_o_tile, 0, carried, lane);
    if (warp == kDzWarp) {
      sums.template add<kChunk>(scaled_phi_q, 0, carried, lane, [&](int row) {
        if (lane >= 8) return 0u;
        uint32_t hi, lo;
        split(e_shared[row], e_shared[row + 1], hi, lo);
        return lane < 4 ? hi : lo;
      });
    }
    if constexpr (kMap) {
      const uint32_t ones = ones_column(lane);
      if constexpr (kRowPart) {
        dw.template add<kChunk>(grad_y_q, Tile<kHead>{stage + Memory::kQ}, 0, kChunk, lane);
        if (warp == kDbQWarp)
          sums.template add<kChunk>(grad_y_q, 0, kChunk, lane, [ones](int) { return ones; });
      }
      if constexpr (kColumnPart) {
        dw.template add<kChunk>(grad_y_k, Tile<kHead>{stage + Memory::kK}, 0, kChunk, lane);
        if (warp == kDbKWarp)
          sums.template add<kChunk>(grad_y_k, 0, kChunk, lane, [ones](int) { return ones; });
      }
    }
    publish_state();
    if constexpr (kColumnPart || kStages == 1)
      __syncthreads();  // d y of the keys and e are overwritten next
    if constexpr (kStages == 1) {
      copy_chunk(chunk - 1);
      copy_state(chunk - 1);
    }
  }

  const auto write_state = [&](float* to_s, float* to_z) {
    ds.for_each_pair(lane, [&](int row, int column, const float* pair) {
      if (row < features)
        *reinterpret_cast<float2*>(to_s + row * kHead + column) = {pair[0], pair[1]};
    });
    if (warp == kDzWarp)
      sums.for_each(lane, [&](int feature, float sum) {
        if (feature < features) to_z[feature] = sum;
      });
  };
  if constexpr (kPart == BackwardPart::kRows) {
    float* const part = a.sums + (int64_t{item} * a.plan.segments + segment) * a.plan.sums_floats;
    write_state(part, part + features * kHead);
  } else if (a.grad_initial_s != nullptr && segment == 0) {
    write_state(a.grad_initial_s + int64_t{item} * features * kHead,
                a.grad_initial_z + int64_t{item} * features);
  }
  if constexpr (kMap) {
    // Parts of d W and d b: [item][segment][queries' and keys' launch] when there are two launches.
    constexpr int kLaunches = kPart == BackwardPart::kAll ? 1 : 2,
                  kLaunch = kPart == BackwardPart::kColumns ? 1 : 0;
    float* const part =
        a.grad_weight + ((int64_t{item} * a.plan.segments + segment) * kLaunches + kLaunch) *
                            (kHead + 2) * features;
    dw.for_each_pair(lane, [&](int row, int column, const float* pair) {
      if (row < features)
        *reinterpret_cast<float2*>(part + row * kHead + column) = {pair[0], pair[1]};
    });
    float* const db = part + features * kHead;  // [queries, keys][features]
    if (warp == kDbQWarp) {
      const float unscale = 1.0F / a.rule.scale;
      sums.for_each(lane, [&](int feature, float sum) {
        if (feature < features) db[feature] = kRowPart ? sum * unscale : 0.0F;
      });
    }
    if (warp == kDbKWarp) {
      sums.for_each(lane, [&](int feature, float sum) {
        if (feature < features) db[features + feature] = kColumnPart ? sum : 0.0F;
      });
    }
  }
}

template <int kHead, int kFeatures, int kChunk, bool kMap, int kStages>
cudaError_t launch_staged_backward(const CausalArguments& a, cudaStream_t stream) {
  constexpr int kBytes = BackwardMemory<kHead, kFeatures, kChunk, kMap, kStages>::kBytes;
  static_assert(kBytes <= kHopperSharedBytes);
  const dim3 grid(a.shape.batch * a.shape.query_heads, a.plan.segments);
  const auto launch = [&](auto* kernel) {
    const cudaError_t error =
        cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, kBytes);
    if (error != cudaSuccess) return error;
    kernel<<<grid, kChunk * 2, kBytes, stream>>>(a);
    return cudaGetLastError();
  };
  if (a.plan.segments == 1)
    return launch(
        causal_backward_kernel<kHead, kFeatures, kChunk, kMap, kStages, BackwardPart::kAll>);
  cudaError_t error =
      launch(causal_backward_kernel<kHead, kFeatures, kChunk, kMap, kStages, BackwardPart::kRows>);
  if (error == cudaSuccess) error = scan_segments(a, true, stream);
  if (error != cudaSuccess) return error;
  return launch(
      causal_backward_kernel<kHead, kFeatures, kChunk, kMap, kStages, BackwardPart::kColumns>);
}

template <int kHead, int kFeatures, int kChunk, bool kMap>
cudaError_t launch_backward(const CausalArguments& a, cudaStream_t stream) {
  if constexpr (has_backward_stages<kHead, kFeatures, kChunk, kMap>(2)) {
    if (a.plan.stages == 2)
      return launch_staged_backward<kHead, kFeatures, kChunk, kMap, 2>(a, stream);
  }
  if constexpr (has_backward_stages<kHead, kFeatures, kChunk, kMap>(1)) {
    if (a.plan.stages == 1)
      return launch_staged_backward<kHead, kFeatures, kChunk, kMap, 1>(a, stream);
  }
  return cudaErrorInvalidValue;
}

}  // namespace t2r::kernels::cuda
