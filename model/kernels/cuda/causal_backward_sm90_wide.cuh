#pragma once

#include "model/kernels/cuda/causal_backward_sm90.cuh"
#include "model/kernels/cuda/causal_forward_sm90_wide.cuh"

namespace t2r::kernels::cuda::sm90 {

template <int kFeatures, bool kMap>
struct WideBackwardMemory {
  static constexpr int kTile = kWideChunk * kHalfHead * 2;
  static constexpr int kInputTiles = kMap ? 2 : 1;
  static constexpr int kInputTile = kMap ? kTile : kWideChunk * kFeatures * 2;
  static constexpr int kQ = 0;
  static constexpr int kK = kQ + kInputTiles * kInputTile;
  static constexpr int kV = kK + kInputTiles * kInputTile;
  static constexpr int kGradO = kV + 2 * kTile;
  static constexpr int kStage = kGradO + 2 * kTile;
  static constexpr int kWeightTile = kMap ? kFeatures * kHalfHead * 2 : 0;
  static constexpr int kFeatureTile = kWideChunk * kFeatures * 2;
  static constexpr int kRecord = round_up(kWideRecordBytes<kFeatures>, 1024);
  static constexpr int kScratchBytes = 2 * kTile;
  static constexpr int kSmall = 4 * kFeatures + 4 * kWideChunk + 16 * kFeatures + 32 + 1024;
  static constexpr int kRest = 2 * kWeightTile + (kMap ? 5 : 2) * kFeatureTile + 2 * kRecord + kScratchBytes + kSmall;
  static constexpr int kStages = 2 * kStage + kRest <= 227 * 1024 ? 2 : 1;
  static constexpr int kWeight = kStages * kStage;
  static constexpr int kScaledPhiQ = kWeight + 2 * kWeightTile;  // R = phi(q) / denominator
  static constexpr int kGradYK = kScaledPhiQ + kFeatureTile;
  static constexpr int kGradYQ = kGradYK + kFeatureTile;
  static constexpr int kPhiK = kGradYQ + (kMap ? kFeatureTile : 0);
  static constexpr int kPhiQ = kPhiK + (kMap ? kFeatureTile : 0);
  static constexpr int kState = kPhiQ + (kMap ? kFeatureTile : 0);
  static constexpr int kGradState = kState + kRecord;
  static constexpr int kScratch = kGradState + kRecord;
  static constexpr int kBias = kScratch + kScratchBytes;
  static constexpr int kE = kBias + 4 * kFeatures;
  static constexpr int kDz = kE + 4 * kWideChunk;  // [warp of the first warpgroup][kFeatures]
  static constexpr int kBarriers = kDz + 16 * kFeatures;
  static constexpr int kBytes = kBarriers + 32 + 1024;
  static_assert(kBytes <= 227 * 1024);
};

/// causal_backward_kernel for head size 128 on Hopper, shared out as causal_forward_wide_kernel is: both warpgroups make the
/// weights and the features' gradients of all rows, and each the half of what has columns: d q, d k, d v, dS^T, dW^T.
template <int kFeatures, bool kMap, BackwardPart kPart>
__global__ void __launch_bounds__(kThreads, 1) causal_backward_wide_kernel(const __grid_constant__ CausalArguments a,
                                                                           const __grid_constant__ TensorMaps maps) {
#ifdef __CUDA_ARCH_FEAT_SM90_ALL
  using Memory = WideBackwardMemory<kFeatures, kMap>;
  constexpr int kSteps = kFeatures / 16;
  constexpr bool kRowPart = kPart != BackwardPart::kColumns, kColumnPart = kPart != BackwardPart::kRows;
  extern __shared__ unsigned char unaligned_memory[];
  unsigned char* const memory = unaligned_memory + (-shared_address(unaligned_memory) & 1023);
  const uint32_t base = shared_address(memory);
  const auto weight = [&](int half) { return Tile<kHalfHead>{base + Memory::kWeight + half * Memory::kWeightTile}; };
  const Tile<kFeatures> scaled_phi_q{base + Memory::kScaledPhiQ}, grad_y_q{base + Memory::kGradYQ}, grad_y_k{base + Memory::kGradYK};
  const Tile<kFeatures> s_hi{base + Memory::kState}, s_lo{base + Memory::kState + kFeatures * kWideHead * 2};
  const Tile<kFeatures> ds_hi{base + Memory::kGradState}, ds_lo{base + Memory::kGradState + kFeatures * kWideHead * 2};
  const float* const z = reinterpret_cast<const float*>(memory + Memory::kState + 4 * kFeatures * kWideHead);
  float* const dz_shared = reinterpret_cast<float*>(memory + Memory::kDz);
  float* const bias = reinterpret_cast<float*>(memory + Memory::kBias);
  float* const e_shared = reinterpret_cast<float*>(memory + Memory::kE);

  const Shape& shape = a.shape;
  const int item = blockIdx.x, segment = blockIdx.y;
  const int batch = item / shape.query_heads, head = item % shape.query_heads;
  const int heads_per_state = shape.query_heads / shape.state_heads, state_head = head / heads_per_state;
  const int tid = threadIdx.x, lane = tid & 31, warp = __shfl_sync(0xffffffffu, tid >> 5, 0);  // uniform, and known to be
  const int group = warp >> 2, row0 = (warp & 3) * 16, low = row0 + lane / 4, high = low + 8;
  const int column_low = group * kHalfHead + low;  // of dS^T and dW^T
  const int features = shape.feature_size;
  const int chunk_begin = segment * a.plan.chunks_per_segment;
  const int chunk_end = min(chunk_begin + a.plan.chunks_per_segment, a.plan.chunks);
  const int key_head = state_head / (shape.state_heads / shape.key_heads);
  const int value_head = state_head / (shape.state_heads / shape.value_heads);
  const Tile<kHalfHead> scratch{base + Memory::kScratch + group * Memory::kTile};
  float* const saved_denominator = a.row_values == nullptr ? nullptr : a.row_values + int64_t{item} * 2 * shape.length;
  float* const saved_e = saved_denominator + shape.length;

  const uint32_t state_barrier = base + Memory::kBarriers + 8 * Memory::kStages;
  // With one stage only, a chunk is loaded in two parts, as its places become free; the L2 cache has it before.
  const auto copy_keys = [&](int chunk) {
    if (tid != 0 || chunk < chunk_begin) return;
    const int slot = chunk % Memory::kStages;
    const uint32_t stage = base + slot * Memory::kStage, barrier = base + Memory::kBarriers + 8 * slot;
#pragma unroll
    for (int i = 0; i < Memory::kInputTiles; ++i)
      load_tile(stage + Memory::kK + i * Memory::kInputTile, maps.k, barrier, 64 * i, chunk * kWideChunk, key_head, batch);
  };
  const auto copy_others = [&](int chunk) {
    if (tid != 0 || chunk < chunk_begin) return;
    const int slot = chunk % Memory::kStages, token = chunk * kWideChunk;
    const uint32_t stage = base + slot * Memory::kStage, barrier = base + Memory::kBarriers + 8 * slot;
    expect_bytes(barrier, Memory::kStage);
#pragma unroll
    for (int i = 0; i < Memory::kInputTiles; ++i)
      load_tile(stage + Memory::kQ + i * Memory::kInputTile, maps.q, barrier, 64 * i, token, head, batch);
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      load_tile(stage + Memory::kV + i * Memory::kTile, maps.v, barrier, 64 * i, token, value_head, batch);
      load_tile(stage + Memory::kGradO + i * Memory::kTile, maps.grad_o, barrier, 64 * i, token, head, batch);
    }
  };
  const auto prefetch_chunk = [&](int chunk) {
    if (tid != 0 || chunk < chunk_begin) return;
    const int token = chunk * kWideChunk;
#pragma unroll
    for (int i = 0; i < Memory::kInputTiles; ++i) {
      prefetch_tile(maps.k, 64 * i, token, key_head, batch);
      prefetch_tile(maps.q, 64 * i, token, head, batch);
    }
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      prefetch_tile(maps.v, 64 * i, token, value_head, batch);
      prefetch_tile(maps.grad_o, 64 * i, token, head, batch);
    }
  };
  const auto has_state = [&](int chunk) { return kRowPart && (chunk > 0 || a.initial_s != nullptr); };
  const auto copy_state = [&](int chunk) {
    if (!kRowPart || chunk < chunk_begin) return;
    if (has_state(chunk)) {
      if (tid != 0) return;
      expect_bytes(state_barrier, kWideRecordBytes<kFeatures>);
      load_bytes(base + Memory::kState, a.states + (int64_t{item} * a.plan.chunks + chunk) * a.plan.state_record_bytes, kWideRecordBytes<kFeatures>, state_barrier);
    } else {
      for (int i = tid; i < kWideRecordBytes<kFeatures> / 16; i += kThreads) store_shared_16(base + Memory::kState + 16 * i, uint4{0, 0, 0, 0});
    }
  };

  if (tid == 0) {
    for (int barrier = 0; barrier <= Memory::kStages; ++barrier) init_barrier(base + Memory::kBarriers + 8 * barrier);
    publish_barriers();
  }
  wait_for_earlier_kernels();
  if (tid == 0) {
    copy_others(chunk_end - 1);
    copy_keys(chunk_end - 1);
  }
  copy_state(chunk_end - 1);
  if constexpr (kMap) {
    copy_weight_async<kWideHead, kFeatures, kThreads>([&](int row, int unit) { return weight(unit / 8).at(row, unit % 8); }, a.weight, state_head, features);
    load_bias<kFeatures, kThreads>(bias, a.bias, state_head, features);
  }
  commit_copies();

  // This warpgroup's halves of dS^T and dW^T, [64][kFeatures]; and of every warp its share: of the first warpgroup's, dz; of the
  // second's, d b.
  float ds[kFeatures / 8][4] = {}, dw[kFeatures / 8][4] = {};
  WeightedColumnSums<kFeatures> share;
  const auto own_rows = [&](const Tile<kFeatures>& tile) { return Tile<kFeatures>{tile.base + row0 * Tile<kFeatures>::kRowBytes}; };
  if constexpr (kColumnPart) {
    const float *from_s = nullptr, *from_z = nullptr;
    if (a.plan.segments > 1) {
      from_s = a.sums + (int64_t{item} * a.plan.segments + segment) * a.plan.sums_floats;
      from_z = from_s + features * kWideHead;
    } else if (a.grad_final_s != nullptr && head % heads_per_state == 0) {
      const int64_t state = int64_t{batch} * shape.state_heads + state_head;
      from_s = a.grad_final_s + state * features * kWideHead;
      from_z = a.grad_final_z + state * features;
    }
    if (from_s != nullptr) {
#pragma unroll
      for (int n = 0; n < kFeatures / 8; ++n)
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          const int feature = n * 8 + 2 * (lane & 3) + (i & 1);
          if (feature < features) ds[n][i] = from_s[feature * kWideHead + column_low + (i < 2 ? 0 : 8)];
        }
      if (warp == 0 && (lane & 3) == 0) {
#pragma unroll
        for (int m = 0; m < kSteps; ++m) {
          const int feature = m * 16 + lane / 4;
          if (feature < features) share.value[m][0] = from_z[feature];
          if (feature + 8 < features) share.value[m][2] = from_z[feature + 8];
        }
      }
    }
  }
  const auto publish_state = [&] {
    if constexpr (kColumnPart) {
      store_split_rows(ds_hi, ds_lo, group * kHalfHead + row0, ds, lane);
      if (group == 0) share.for_each(lane, [&](int feature, float value) { dz_shared[warp * kFeatures + feature] = value; });
    }
  };
  publish_state();
  const auto free_scratch = [&] {
    if (lane == 0) wait_stores_read();
    __syncwarp();
  };

  const auto row_values_of = [&](int chunk) { return RowValues(saved_denominator, saved_e, chunk * kWideChunk, low, chunk < chunk_begin ? 0 : shape.length); };
  RowValues next(nullptr, nullptr, 0, 0, 0);
  if constexpr (!kRowPart) next = row_values_of(chunk_end - 1);

  for (int chunk = chunk_end - 1; chunk >= chunk_begin; --chunk) {
    const uint32_t stage = base + chunk % Memory::kStages * Memory::kStage;
    const auto tile = [&](int at, int half) { return Tile<kHalfHead>{stage + at + half * Memory::kTile}; };
    const Tile<kFeatures> phi_k{kMap ? base + Memory::kPhiK : stage + Memory::kK};
    const Tile<kFeatures> phi_q_tile{kMap ? base + Memory::kPhiQ : stage + Memory::kQ};
    const int first = chunk * kWideChunk, valid = min(kWideChunk, shape.length - first);
    const int turn = chunk_end - 1 - chunk;

    if (turn == 0) wait_copies<0>();  // the map's weights
    if (lane == 0) wait_stores_read();
    make_visible_to_wgmma();
    __syncthreads();
    if constexpr (Memory::kStages == 2) {
      copy_others(chunk - 1);
      copy_keys(chunk - 1);
    } else {
      prefetch_chunk(chunk - 1);
    }
    wait_barrier(base + Memory::kBarriers + 8 * (chunk % Memory::kStages), turn / Memory::kStages & 1);
    if (has_state(chunk)) wait_barrier(state_barrier, turn & 1);

    if constexpr (kMap) {  // the first warpgroup maps the keys, the second the queries
      const int input = group == 0 ? Memory::kK : Memory::kQ;
      float y[kFeatures / 8][4];
      begin_products();
#pragma unroll
      for (int half = 0; half < 2; ++half)
#pragma unroll
        for (int step = 0; step < 4; ++step)
          product<Major::kK, Major::kK>(y, operand<Major::kK>(tile(input, half), 0, step), operand<Major::kK>(weight(half), 0, step), half + step > 0);
      commit_products();
      wait_products<0>();
      settle(y);
      uint32_t phi[kSteps][4];
      activate<kFeatures>(phi, y, bias, group == 0 ? 1.0F : a.rule.scale, low < valid, high < valid, lane);
      store_rows<kFeatures>(group == 0 ? phi_k : phi_q_tile, row0, phi, lane);
      make_visible_to_wgmma();
      __syncthreads();
    }

    float inverse_low = 0.0F, inverse_high = 0.0F;
    if constexpr (kRowPart) {
      uint32_t phi_q[kSteps][4];
#pragma unroll
      for (int step = 0; step < kSteps; ++step) phi_q_tile.load_a(phi_q[step], row0, 2 * step, lane);
      float p[8][4], dp[8][4], dphi[kFeatures / 8][4];
      begin_products();
#pragma unroll
      for (int step = 0; step < kSteps; ++step) product<Major::kK>(p, phi_q[step], operand<Major::kK>(phi_k, 0, step), step > 0);
#pragma unroll
      for (int half = 0; half < 2; ++half)
#pragma unroll
        for (int step = 0; step < 4; ++step)
          product<Major::kK, Major::kK>(dp, operand<Major::kK>(tile(Memory::kGradO, half), 0, step), operand<Major::kK>(tile(Memory::kV, half), 0, step), half + step > 0);
      commit_products();
#pragma unroll
      for (int half = 0; half < 2; ++half)
#pragma unroll
        for (int step = 0; step < 4; ++step) {
          product<Major::kK, Major::kMN>(dphi, operand<Major::kK>(tile(Memory::kGradO, half), 0, step), operand<Major::kMN>(s_hi, half * 64, step), half + step > 0);
          product<Major::kK, Major::kMN>(dphi, operand<Major::kK>(tile(Memory::kGradO, half), 0, step), operand<Major::kMN>(s_lo, half * 64, step), true);
        }
      commit_products();
      wait_products<1>();
      settle(p);
      settle(dp);
      float den_low = 0.0F, den_high = 0.0F, inner_low = 0.0F, inner_high = 0.0F;  // inner: d o . numerator
#pragma unroll
      for (int n = 0; n < 8; ++n) {
        float w[4] = {p[n][0], p[n][1], p[n][2], p[n][3]};
        mask_after(w, n * 8 + 2 * (lane & 3), low, high);
        den_low += w[0] + w[1];
        den_high += w[2] + w[3];
        inner_low = fmaf(w[0], dp[n][0], fmaf(w[1], dp[n][1], inner_low));
        inner_high = fmaf(w[2], dp[n][2], fmaf(w[3], dp[n][3], inner_high));
      }
      wait_products<0>();
      settle(dphi);
#pragma unroll
      for (int n = 0; n < kFeatures / 8; ++n) {
        const float2 z_pair = *reinterpret_cast<const float2*>(z + 8 * n + 2 * (lane & 3));
        const float2 phi_low = unpack(phi_q[n / 2][2 * (n & 1)]), phi_high = unpack(phi_q[n / 2][2 * (n & 1) + 1]);
        den_low = fmaf(phi_low.x, z_pair.x, fmaf(phi_low.y, z_pair.y, den_low));
        den_high = fmaf(phi_high.x, z_pair.x, fmaf(phi_high.y, z_pair.y, den_high));
        inner_low = fmaf(phi_low.x, dphi[n][0], fmaf(phi_low.y, dphi[n][1], inner_low));
        inner_high = fmaf(phi_high.x, dphi[n][2], fmaf(phi_high.y, dphi[n][3], inner_high));
      }
      den_low = row_sum(den_low) + a.rule.added;
      den_high = row_sum(den_high) + a.rule.added;
      inner_low = row_sum(inner_low);
      inner_high = row_sum(inner_high);
      inverse_low = 1.0F / fmaxf(den_low, a.rule.floor);
      inverse_high = 1.0F / fmaxf(den_high, a.rule.floor);
      const float e_low = den_low < a.rule.floor ? 0.0F : -inner_low * inverse_low;
      const float e_high = den_high < a.rule.floor ? 0.0F : -inner_high * inverse_high;
      if (group == 0 && (lane & 3) == 0) {
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
        dphi[n][0] = fmaf(e_low, z_pair.x, dphi[n][0]);
        dphi[n][1] = fmaf(e_low, z_pair.y, dphi[n][1]);
        dphi[n][2] = fmaf(e_high, z_pair.x, dphi[n][2]);
        dphi[n][3] = fmaf(e_high, z_pair.y, dphi[n][3]);
      }
      uint32_t weights[4][4];
#pragma unroll
      for (int n = 0; n < 8; ++n) {
        float w[4] = {dp[n][0] + e_low, dp[n][1] + e_low, dp[n][2] + e_high, dp[n][3] + e_high};
        mask_after(w, n * 8 + 2 * (lane & 3), low, high);
        weights[n / 2][2 * (n & 1)] = pack(w[0], w[1]);
        weights[n / 2][2 * (n & 1) + 1] = pack(w[2], w[3]);
      }
      begin_products();
#pragma unroll
      for (int step = 0; step < 4; ++step) product<Major::kMN>(dphi, weights[step], operand<Major::kMN>(phi_k, 0, step), true);
      commit_products();
      if (group == 0) {
        store_scaled_rows<kFeatures>(scaled_phi_q, row0, phi_q, inverse_low, inverse_high, lane);  // R, while the products run
      }
      wait_products<0>();
      settle(dphi);
      if constexpr (kMap) {
        uint32_t grad_y[kSteps][4];
        const float scale_low = inverse_low * a.rule.scale, scale_high = inverse_high * a.rule.scale;
#pragma unroll
        for (int n = 0; n < kFeatures / 8; ++n) {
          const float2 phi_low = unpack(phi_q[n / 2][2 * (n & 1)]), phi_high = unpack(phi_q[n / 2][2 * (n & 1) + 1]);
          grad_y[n / 2][2 * (n & 1)] = pack(phi_low.x > 0.0F ? dphi[n][0] * scale_low : 0.0F, phi_low.y > 0.0F ? dphi[n][1] * scale_low : 0.0F);
          grad_y[n / 2][2 * (n & 1) + 1] = pack(phi_high.x > 0.0F ? dphi[n][2] * scale_high : 0.0F, phi_high.y > 0.0F ? dphi[n][3] * scale_high : 0.0F);
        }
        float grad[8][4];
        begin_products();
#pragma unroll
        for (int step = 0; step < kSteps; ++step) product<Major::kMN>(grad, grad_y[step], operand<Major::kMN>(weight(group), 0, step), step > 0);
        commit_products();
        if (group == 1) store_rows<kFeatures>(grad_y_q, row0, grad_y, lane);
        make_visible_to_wgmma();
        wait_products<0>();
        settle(grad);
        stage_rows<kHalfHead>(scratch, row0, grad, 1.0F, 1.0F, lane);
        send_rows(maps.grad_q, scratch, row0, group * kHalfHead, first, head, batch, lane);
      } else if (group == 0) {
        stage_rows<kFeatures>(grad_y_k, row0, dphi, inverse_low, inverse_high, lane);
        send_rows(maps.grad_q, grad_y_k, row0, 0, first, head, batch, lane);
      }
    } else if (group == 0) {
      inverse_low = 1.0F / next.denominator_low;
      inverse_high = 1.0F / next.denominator_high;
      if ((lane & 3) == 0) {
        e_shared[low] = next.e_low;
        e_shared[high] = next.e_high;
      }
      next = row_values_of(chunk - 1);
      uint32_t phi_q[kSteps][4];
#pragma unroll
      for (int step = 0; step < kSteps; ++step) phi_q_tile.load_a(phi_q[step], row0, 2 * step, lane);
      store_scaled_rows<kFeatures>(scaled_phi_q, row0, phi_q, inverse_low, inverse_high, lane);
    }
    make_visible_to_wgmma();
    __syncthreads();
    copy_state(chunk - 1);

    const auto start_sums = [&] {  // what needs R, e and d y of the queries alone
#pragma unroll
      for (int step = 0; step < 4; ++step)
        product<Major::kMN, Major::kMN>(ds, operand<Major::kMN>(tile(Memory::kGradO, group), 0, step), operand<Major::kMN>(scaled_phi_q, 0, step), true);
      if constexpr (kMap && kRowPart) {
#pragma unroll
        for (int step = 0; step < 4; ++step)
          product<Major::kMN, Major::kMN>(dw, operand<Major::kMN>(tile(Memory::kQ, group), 0, step), operand<Major::kMN>(grad_y_q, 0, step), true);
      }
      commit_products();
    };
    const auto share_sums = [&] {
      if (group == 0) {
        share.template add<16>(own_rows(scaled_phi_q), 0, 16, lane, [&](int row) {
          uint32_t hi, lo;
          split(e_shared[row0 + row], e_shared[row0 + row + 1], hi, lo);
          return lane < 4 ? hi : lane < 8 ? lo : 0u;
        });
      } else if constexpr (kMap && kRowPart) {
        uint32_t hi, lo;
        split(1.0F / a.rule.scale, 1.0F / a.rule.scale, hi, lo);
        const uint32_t unscale = lane < 4 ? hi : lane < 8 ? lo : 0u;
        share.template add<16>(own_rows(grad_y_q), 0, 16, lane, [unscale](int) { return unscale; });
      }
    };

    if constexpr (kColumnPart) {
      uint32_t own_phi_k[kSteps][4];
#pragma unroll
      for (int step = 0; step < kSteps; ++step) phi_k.load_a(own_phi_k[step], row0, 2 * step, lane);
      share_sums();  // mma.sync: behind queued wgmma it would wait for all of them
      float p[8][4], dp[8][4], dphi[kFeatures / 8][4];
      begin_products();
#pragma unroll
      for (int step = 0; step < kSteps; ++step) product<Major::kK>(p, own_phi_k[step], operand<Major::kK>(scaled_phi_q, 0, step), step > 0);
#pragma unroll
      for (int half = 0; half < 2; ++half)
#pragma unroll
        for (int step = 0; step < 4; ++step)
          product<Major::kK, Major::kK>(dp, operand<Major::kK>(tile(Memory::kV, half), 0, step), operand<Major::kK>(tile(Memory::kGradO, half), 0, step), half + step > 0);
      commit_products();
#pragma unroll
      for (int half = 0; half < 2; ++half)
#pragma unroll
        for (int step = 0; step < 4; ++step) {
          product<Major::kK, Major::kMN>(dphi, operand<Major::kK>(tile(Memory::kV, half), 0, step), operand<Major::kMN>(ds_hi, half * 64, step), half + step > 0);
          product<Major::kK, Major::kMN>(dphi, operand<Major::kK>(tile(Memory::kV, half), 0, step), operand<Major::kMN>(ds_lo, half * 64, step), true);
        }
      start_sums();
      wait_products<1>();
      settle(p);
      settle(dp);
      uint32_t weights[4][4], grad_weights[4][4];
#pragma unroll
      for (int n = 0; n < 8; ++n) {
        const float2 e_pair = *reinterpret_cast<const float2*>(e_shared + 8 * n + 2 * (lane & 3));
        float w[4] = {p[n][0], p[n][1], p[n][2], p[n][3]};
        float g[4] = {dp[n][0] + e_pair.x, dp[n][1] + e_pair.y, dp[n][2] + e_pair.x, dp[n][3] + e_pair.y};
        mask_before(w, n * 8 + 2 * (lane & 3), low, high);
        mask_before(g, n * 8 + 2 * (lane & 3), low, high);
        weights[n / 2][2 * (n & 1)] = pack(w[0], w[1]);
        weights[n / 2][2 * (n & 1) + 1] = pack(w[2], w[3]);
        grad_weights[n / 2][2 * (n & 1)] = pack(g[0], g[1]);
        grad_weights[n / 2][2 * (n & 1) + 1] = pack(g[2], g[3]);
      }
      begin_products();
#pragma unroll
      for (int step = 0; step < 4; ++step) product<Major::kMN>(dphi, grad_weights[step], operand<Major::kMN>(scaled_phi_q, 0, step), true);
      commit_products();
      wait_products<0>();
      settle(dphi);
      settle(ds);
      settle(dw);
#pragma unroll
      for (int n = 0; n < kFeatures / 8; ++n)
#pragma unroll
        for (int from = 0; from < 4; ++from) {
          const float2 dz_pair = *reinterpret_cast<const float2*>(dz_shared + from * kFeatures + 8 * n + 2 * (lane & 3));
          dphi[n][0] += dz_pair.x;
          dphi[n][1] += dz_pair.y;
          dphi[n][2] += dz_pair.x;
          dphi[n][3] += dz_pair.y;
        }
      uint32_t grad_y[kSteps][4];
#pragma unroll
      for (int n = 0; n < kFeatures / 8; ++n) {
        const float2 phi_low = unpack(own_phi_k[n / 2][2 * (n & 1)]), phi_high = unpack(own_phi_k[n / 2][2 * (n & 1) + 1]);
        grad_y[n / 2][2 * (n & 1)] = pack(!kMap || phi_low.x > 0.0F ? dphi[n][0] : 0.0F, !kMap || phi_low.y > 0.0F ? dphi[n][1] : 0.0F);
        grad_y[n / 2][2 * (n & 1) + 1] = pack(!kMap || phi_high.x > 0.0F ? dphi[n][2] : 0.0F, !kMap || phi_high.y > 0.0F ? dphi[n][3] : 0.0F);
      }
      float dv[8][4], grad[8][4];
      begin_products();
#pragma unroll
      for (int step = 0; step < kSteps; ++step) {
        product<Major::kK>(dv, own_phi_k[step], operand<Major::kK>(ds_hi, group * kHalfHead, step), step > 0);
        product<Major::kK>(dv, own_phi_k[step], operand<Major::kK>(ds_lo, group * kHalfHead, step), true);
      }
#pragma unroll
      for (int step = 0; step < 4; ++step) product<Major::kMN>(dv, weights[step], operand<Major::kMN>(tile(Memory::kGradO, group), 0, step), true);
      commit_products();
      if constexpr (kMap) {
#pragma unroll
        for (int step = 0; step < kSteps; ++step) product<Major::kMN>(grad, grad_y[step], operand<Major::kMN>(weight(group), 0, step), step > 0);
      }
      commit_products();
      free_scratch();
      if (group == 0) store_rows<kFeatures>(grad_y_k, row0, grad_y, lane);
      wait_products<1>();
      settle(dv);
      stage_rows<kHalfHead>(scratch, row0, dv, 1.0F, 1.0F, lane);
      send_rows(maps.grad_v, scratch, row0, group * kHalfHead, first, head, batch, lane);
      wait_products<0>();
      free_scratch();
      if constexpr (kMap) {
        settle(grad);
        stage_rows<kHalfHead>(scratch, row0, grad, 1.0F, 1.0F, lane);
        send_rows(maps.grad_k, scratch, row0, group * kHalfHead, first, head, batch, lane);
      } else if (group == 0) {
        send_rows(maps.grad_k, grad_y_k, row0, 0, first, head, batch, lane);
      }
      make_visible_to_wgmma();
      __syncthreads();
      if constexpr (Memory::kStages == 1) copy_others(chunk - 1);
    } else {
      begin_products();
      start_sums();
      share_sums();
      wait_products<0>();
      settle(ds);
      settle(dw);
    }
    publish_state();
    if constexpr (kMap && kColumnPart) {
      begin_products();
#pragma unroll
      for (int step = 0; step < 4; ++step)
        product<Major::kMN, Major::kMN>(dw, operand<Major::kMN>(tile(Memory::kK, group), 0, step), operand<Major::kMN>(grad_y_k, 0, step), true);
      commit_products();
      if (group == 1) {
        const uint32_t ones = ones_column(lane);
        share.template add<16>(own_rows(grad_y_k), 0, 16, lane, [ones](int) { return ones; });
      }
      wait_products<0>();
      settle(dw);
    }
    if constexpr (Memory::kStages == 1) {
      __syncthreads();
      if constexpr (!kColumnPart) copy_others(chunk - 1);
      copy_keys(chunk - 1);
    }
  }

  // The warps' shares meet where a state was.
  if (lane == 0) wait_stores_read();
  __syncthreads();
  float* const shares = reinterpret_cast<float*>(memory + Memory::kState);
  share.for_each(lane, [&](int feature, float value) { shares[warp * kFeatures + feature] = value; });
  __syncthreads();
  const auto write_transposed = [&](const float (&value)[kFeatures / 8][4], float* to) {
#pragma unroll
    for (int n = 0; n < kFeatures / 8; ++n)
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const int feature = n * 8 + 2 * (lane & 3) + (i & 1);
        if (feature < features) to[feature * kWideHead + column_low + (i < 2 ? 0 : 8)] = value[n][i];
      }
  };
  const auto write_shares = [&](int from_group, float* to) {
    if (tid >= features) return;
    const float* const from = shares + from_group * 4 * kFeatures + tid;
    to[tid] = (from[0] + from[kFeatures]) + (from[2 * kFeatures] + from[3 * kFeatures]);
  };
  if constexpr (kPart == BackwardPart::kRows) {
    float* const part = a.sums + (int64_t{item} * a.plan.segments + segment) * a.plan.sums_floats;
    write_transposed(ds, part);
    write_shares(0, part + features * kWideHead);
  } else if (a.grad_initial_s != nullptr && segment == 0) {
    write_transposed(ds, a.grad_initial_s + int64_t{item} * features * kWideHead);
    write_shares(0, a.grad_initial_z + int64_t{item} * features);
  }
  if constexpr (kMap) {
    constexpr int kLaunches = kPart == BackwardPart::kAll ? 1 : 2, kLaunch = kPart == BackwardPart::kColumns ? 1 : 0;
    float* const part = a.grad_weight + ((int64_t{item} * a.plan.segments + segment) * kLaunches + kLaunch) * (kWideHead + 2) * features;
    write_transposed(dw, part);
    write_shares(1, part + features * kWideHead);
    if (tid < features) part[features * kWideHead + features + tid] = 0.0F;
  }
#else
  __trap();
#endif
}

template <int kFeatures, bool kMap>
cudaError_t launch_backward_wide(const CausalArguments& a, cudaStream_t stream) {
  return launch_backward_kernels(&causal_backward_wide_kernel<kFeatures, kMap, BackwardPart::kAll>,
                                 &causal_backward_wide_kernel<kFeatures, kMap, BackwardPart::kRows>,
                                 &causal_backward_wide_kernel<kFeatures, kMap, BackwardPart::kColumns>,
                                 WideBackwardMemory<kFeatures, kMap>::kBytes, a, stream);
}

}  // namespace t2r::kernels::cuda::sm90
