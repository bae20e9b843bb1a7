#pragma once

#include "model/kernels/cuda/causal_backward.cuh"
#include "model/kernels/cuda/causal_forward_sm90.cuh"

namespace t2r::kernels::cuda::sm90 {

/// What the launch for the rows has left for the launch for the columns, of this lane's rows `low` and low + 8 behind `first`.
struct RowValues {
  float denominator_low = 1.0F, denominator_high = 1.0F, e_low = 0.0F, e_high = 0.0F;

  __device__ __forceinline__ RowValues(const float* denominators, const float* e, int first, int low, int length) {
    if (first + low < length) {
      denominator_low = denominators[first + low];
      e_low = e[first + low];
    }
    if (first + low + 8 < length) {
      denominator_high = denominators[first + low + 8];
      e_high = e[first + low + 8];
    }
  }
};

template <int kFeatures, bool kMap>
struct BackwardMemory {
  static constexpr int kInput = kMap ? kHead : kFeatures;
  static constexpr int kQ = 0;
  static constexpr int kK = kQ + kChunk * kInput * 2;
  static constexpr int kV = kK + kChunk * kInput * 2;
  static constexpr int kGradO = kV + kChunk * kHead * 2;
  static constexpr int kStage = kGradO + kChunk * kHead * 2;
  static constexpr int kFeatureTile = kChunk * kFeatures * 2;
  static constexpr int kRecord = round_up(kRecordBytes<kFeatures>, 1024);
  static constexpr int kRest = (kMap ? kFeatures * kHead * 2 + 4 * kFeatureTile : 2 * kFeatureTile) + 2 * kRecord +
                               52 * kFeatures + 4 * kChunk + 32 + 1024;
  static constexpr int kScratchBytes = kMap ? kChunk * kHead * 2 : 0;
  static constexpr int kStages = 2 * kStage + kRest + kScratchBytes <= 227 * 1024 ? 2 : 1;
  static constexpr int kWeight = kStages * kStage;
  static constexpr int kPhiK = kWeight + (kMap ? kFeatures * kHead * 2 : 0);
  static constexpr int kScaledPhiQ = kPhiK + (kMap ? kFeatureTile : 0);  // R = phi(q) / denominator
  static constexpr int kGradYK = kScaledPhiQ + kFeatureTile;
  static constexpr int kGradYQ = kGradYK + kFeatureTile;
  static constexpr int kState = kGradYQ + (kMap ? kFeatureTile : 0);
  static constexpr int kGradState = kState + kRecord;
  static constexpr int kScratch = kGradState + kRecord;
  static constexpr int kBias = kScratch + kScratchBytes;
  static constexpr int kE = kBias + 4 * kFeatures;
  static constexpr int kDz = kE + (kChunk > 8 * kFeatures ? 4 * kChunk : 32 * kFeatures);  // [warp of the first warpgroup][kFeatures]
  static constexpr int kBarriers = kDz + 16 * kFeatures;  // of the stages, then of the state
  static constexpr int kBytes = kBarriers + 32 + 1024;
};

/// causal_backward_kernel on Hopper: the same formulas and the same walk with two warpgroups of 64 rows each. dS^T stays in the
/// first warpgroup's registers, dW^T in the second's.
template <int kFeatures, bool kMap, BackwardPart kPart>
__global__ void __launch_bounds__(kThreads, 1) causal_backward_kernel(const __grid_constant__ CausalArguments a,
                                                                      const __grid_constant__ TensorMaps maps) {
#ifdef __CUDA_ARCH_FEAT_SM90_ALL
  using Memory = BackwardMemory<kFeatures, kMap>;
  constexpr int kInput = Memory::kInput, kSteps = kFeatures / 16, kHeadSteps = kHead / 16;
  constexpr bool kRowPart = kPart != BackwardPart::kColumns, kColumnPart = kPart != BackwardPart::kRows;
  extern __shared__ unsigned char unaligned_memory[];
  unsigned char* const memory = unaligned_memory + (-shared_address(unaligned_memory) & 1023);
  const uint32_t base = shared_address(memory);
  const Tile<kHead> weight{base + Memory::kWeight}, scratch{base + Memory::kScratch};
  const Tile<kFeatures> scaled_phi_q{base + Memory::kScaledPhiQ}, grad_y_q{base + Memory::kGradYQ}, grad_y_k{base + Memory::kGradYK};
  const Tile<kFeatures> s_hi{base + Memory::kState}, s_lo{base + Memory::kState + kFeatures * kHead * 2};
  const Tile<kFeatures> ds_hi{base + Memory::kGradState}, ds_lo{base + Memory::kGradState + kFeatures * kHead * 2};
  const float* const z = reinterpret_cast<const float*>(memory + Memory::kState + 4 * kFeatures * kHead);
  float* const dz_shared = reinterpret_cast<float*>(memory + Memory::kDz);
  float* const bias = reinterpret_cast<float*>(memory + Memory::kBias);
  float* const e_shared = reinterpret_cast<float*>(memory + Memory::kE);

  const Shape& shape = a.shape;
  const int item = blockIdx.x, segment = blockIdx.y;
  const int batch = item / shape.query_heads, head = item % shape.query_heads;
  const int heads_per_state = shape.query_heads / shape.state_heads, state_head = head / heads_per_state;
  const int tid = threadIdx.x, lane = tid & 31, warp = __shfl_sync(0xffffffffu, tid >> 5, 0);  // uniform, and known to be
  const int group = warp >> 2, row0 = warp * 16;
  const int low = row0 + lane / 4, high = low + 8;
  const int features = shape.feature_size;
  const int chunk_begin = segment * a.plan.chunks_per_segment;
  const int chunk_end = min(chunk_begin + a.plan.chunks_per_segment, a.plan.chunks);
  const int key_head = state_head / (shape.state_heads / shape.key_heads);
  const int value_head = state_head / (shape.state_heads / shape.value_heads);
  float* const saved_denominator = a.row_values == nullptr ? nullptr : a.row_values + int64_t{item} * 2 * shape.length;
  float* const saved_e = saved_denominator + shape.length;

  const uint32_t state_barrier = base + Memory::kBarriers + 8 * Memory::kStages;
  const auto copy_chunk = [&](int chunk) {
    if (tid != 0 || chunk < chunk_begin) return;
    const int slot = chunk % Memory::kStages;
    const uint32_t stage = base + slot * Memory::kStage, barrier = base + Memory::kBarriers + 8 * slot;
    expect_bytes(barrier, Memory::kStage);
    load_tile(stage + Memory::kK, maps.k, barrier, 0, chunk * kChunk, key_head, batch);
    load_tile(stage + Memory::kQ, maps.q, barrier, 0, chunk * kChunk, head, batch);
    load_tile(stage + Memory::kV, maps.v, barrier, 0, chunk * kChunk, value_head, batch);
    load_tile(stage + Memory::kGradO, maps.grad_o, barrier, 0, chunk * kChunk, head, batch);
  };
  const auto has_state = [&](int chunk) { return kRowPart && (chunk > 0 || a.initial_s != nullptr); };
  const auto copy_state = [&](int chunk) {
    if (!kRowPart || chunk < chunk_begin) return;
    if (has_state(chunk)) {
      if (tid != 0) return;
      expect_bytes(state_barrier, kRecordBytes<kFeatures>);
      load_bytes(base + Memory::kState, a.states + (int64_t{item} * a.plan.chunks + chunk) * a.plan.state_record_bytes, kRecordBytes<kFeatures>, state_barrier);
    } else {
      for (int i = tid; i < kRecordBytes<kFeatures> / 16; i += kThreads) store_shared_16(base + Memory::kState + 16 * i, uint4{0, 0, 0, 0});
    }
  };

  if (tid == 0) {
    for (int barrier = 0; barrier <= Memory::kStages; ++barrier) init_barrier(base + Memory::kBarriers + 8 * barrier);
    publish_barriers();
  }
  wait_for_earlier_kernels();
  if (tid == 0) {
    copy_chunk(chunk_end - 1);
  }
  copy_state(chunk_end - 1);
  if constexpr (kMap) {
    copy_weight_async<kHead, kFeatures, kThreads>([&](int row, int unit) { return weight.at(row, unit); }, a.weight, state_head, features);
    load_bias<kFeatures, kThreads>(bias, a.bias, state_head, features);
  }
  commit_copies();

  // First warpgroup: dS^T [kHead][kFeatures] and every warp's share of dz. Second: dW^T and every warp's share of d b.
  float sum[kFeatures / 8][4] = {};
  WeightedColumnSums<kFeatures> share;
  const int share_begin = (warp & 3) * (kChunk / 4);
  const auto own_share = [&](const Tile<kFeatures>& tile) { return Tile<kFeatures>{tile.base + share_begin * Tile<kFeatures>::kRowBytes}; };
  if (kColumnPart && group == 0) {
    const auto add_state = [&](const float* from_s, const float* from_z) {
#pragma unroll
      for (int n = 0; n < kFeatures / 8; ++n)
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          const int feature = n * 8 + 2 * (lane & 3) + (i & 1), column = i < 2 ? low : high;
          if (feature < features) sum[n][i] += from_s[feature * kHead + column];
        }
      if (warp == 0 && (lane & 3) == 0) {
#pragma unroll
        for (int m = 0; m < kSteps; ++m) {
          const int feature = m * 16 + lane / 4;
          if (feature < features) share.value[m][0] += from_z[feature];
          if (feature + 8 < features) share.value[m][2] += from_z[feature + 8];
        }
      }
    };
    if (a.plan.segments > 1) {
      const float* const part = a.sums + (int64_t{item} * a.plan.segments + segment) * a.plan.sums_floats;
      add_state(part, part + features * kHead);
    } else if (a.grad_final_s != nullptr && head % heads_per_state == 0) {
      const int64_t state = int64_t{batch} * shape.state_heads + state_head;
      add_state(a.grad_final_s + state * features * kHead, a.grad_final_z + state * features);
    }
  }
  const auto publish_state = [&] {
    if constexpr (kColumnPart) {
      store_split_rows(ds_hi, ds_lo, row0, sum, lane);
      share.for_each(lane, [&](int feature, float value) { dz_shared[warp * kFeatures + feature] = value; });
    }
  };
  if (group == 0) publish_state();

  const auto row_values_of = [&](int chunk) { return RowValues(saved_denominator, saved_e, chunk * kChunk, low, chunk < chunk_begin ? 0 : shape.length); };
  RowValues next(nullptr, nullptr, 0, 0, 0);
  if constexpr (!kRowPart) next = row_values_of(chunk_end - 1);

  for (int chunk = chunk_end - 1; chunk >= chunk_begin; --chunk) {
    const uint32_t stage = base + (Memory::kStages == 2 ? (chunk & 1) * Memory::kStage : 0);
    const Tile<kInput> q_tile{stage + Memory::kQ}, k_tile{stage + Memory::kK};
    const Tile<kHead> v_tile{stage + Memory::kV}, grad_o_tile{stage + Memory::kGradO};
    const Tile<kFeatures> phi_k{kMap ? base + Memory::kPhiK : stage + Memory::kK};
    const int first = chunk * kChunk, valid = min(kChunk, shape.length - first);
    const int turn = chunk_end - 1 - chunk;
    if (turn == 0) wait_copies<0>();  // the map's weights
    if (lane == 0) wait_stores_read();
    make_visible_to_wgmma();
    __syncthreads();
    if constexpr (Memory::kStages == 2) copy_chunk(chunk - 1);
    wait_barrier(base + Memory::kBarriers + 8 * (chunk % Memory::kStages), turn / Memory::kStages & 1);
    if (has_state(chunk)) wait_barrier(state_barrier, turn & 1);

    uint32_t phi_q[kSteps][4], own_phi_k[kSteps][4];
    if constexpr (kMap) {
      float y_k[kFeatures / 8][4], y_q[kFeatures / 8][4];
      begin_products();
#pragma unroll
      for (int step = 0; step < kHeadSteps; ++step)
        product<Major::kK, Major::kK>(y_k, operand<Major::kK>(k_tile, group * 64, step), operand<Major::kK>(weight, 0, step), step > 0);
      commit_products();
#pragma unroll
      for (int step = 0; step < kHeadSteps; ++step)
        product<Major::kK, Major::kK>(y_q, operand<Major::kK>(q_tile, group * 64, step), operand<Major::kK>(weight, 0, step), step > 0);
      commit_products();
      wait_products<1>();
      settle(y_k);
      activate<kFeatures>(own_phi_k, y_k, bias, 1.0F, low < valid, high < valid, lane);
      store_rows<kFeatures>(phi_k, row0, own_phi_k, lane);
      wait_products<0>();
      settle(y_q);
      activate<kFeatures>(phi_q, y_q, bias, a.rule.scale, low < valid, high < valid, lane);
    } else {
#pragma unroll
      for (int step = 0; step < kSteps; ++step) {
        q_tile.load_a(phi_q[step], row0, 2 * step, lane);
        k_tile.load_a(own_phi_k[step], row0, 2 * step, lane);
      }
    }
    float inverse_low = 0.0F, inverse_high = 0.0F;
    if constexpr (!kRowPart) {
      inverse_low = 1.0F / next.denominator_low;
      inverse_high = 1.0F / next.denominator_high;
      if ((lane & 3) == 0) {
        e_shared[low] = next.e_low;
        e_shared[high] = next.e_high;
      }
      next = row_values_of(chunk - 1);
    }
    if constexpr (kMap && kRowPart) {
      make_visible_to_wgmma();
      __syncthreads();
    }

    if constexpr (kRowPart) {
      const auto rows = [&]<int kColumns>() {
        constexpr int kHalves = kColumns / 64;
        float p[8][4], dp[kHalves][8][4], dphi[kFeatures / 8][4];
        const auto weigh = [&](int half) {
#pragma unroll
          for (int step = 0; step < kSteps; ++step)
            product<Major::kK>(p, phi_q[step], operand<Major::kK>(phi_k, half * 64, step), step > 0);
        };
        begin_products();
        weigh(0);
#pragma unroll
        for (int half = 0; half < kHalves; ++half)
#pragma unroll
          for (int step = 0; step < kHeadSteps; ++step)
            product<Major::kK, Major::kK>(dp[half], operand<Major::kK>(grad_o_tile, group * 64, step), operand<Major::kK>(v_tile, half * 64, step), step > 0);
        commit_products();
#pragma unroll
        for (int step = 0; step < kHeadSteps; ++step) {
          product<Major::kK, Major::kMN>(dphi, operand<Major::kK>(grad_o_tile, group * 64, step), operand<Major::kMN>(s_hi, 0, step), step > 0);
          product<Major::kK, Major::kMN>(dphi, operand<Major::kK>(grad_o_tile, group * 64, step), operand<Major::kMN>(s_lo, 0, step), true);
        }
        commit_products();
        wait_products<1>();
        float den_low = 0.0F, den_high = 0.0F, inner_low = 0.0F, inner_high = 0.0F;  // inner: d o . numerator
#pragma unroll
        for (int half = 0; half < kHalves; ++half) {
          if (half > 0) {
            begin_products();
            weigh(half);
            commit_products();
            wait_products<0>();
          }
          settle(p);
          settle(dp[half]);
#pragma unroll
          for (int n = 0; n < 8; ++n) {
            float w[4] = {p[n][0], p[n][1], p[n][2], p[n][3]};
            if (half + 1 == kHalves) mask_after(w, half * 64 + n * 8 + 2 * (lane & 3), low, high);
            den_low += w[0] + w[1];
            den_high += w[2] + w[3];
            inner_low = fmaf(w[0], dp[half][n][0], fmaf(w[1], dp[half][n][1], inner_low));
            inner_high = fmaf(w[2], dp[half][n][2], fmaf(w[3], dp[half][n][3], inner_high));
          }
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
          dphi[n][0] = fmaf(e_low, z_pair.x, dphi[n][0]);
          dphi[n][1] = fmaf(e_low, z_pair.y, dphi[n][1]);
          dphi[n][2] = fmaf(e_high, z_pair.x, dphi[n][2]);
          dphi[n][3] = fmaf(e_high, z_pair.y, dphi[n][3]);
        }
        uint32_t weights[kColumns / 16][4];
#pragma unroll
        for (int half = 0; half < kHalves; ++half)
#pragma unroll
          for (int n = 0; n < 8; ++n) {
            float w[4] = {dp[half][n][0] + e_low, dp[half][n][1] + e_low, dp[half][n][2] + e_high, dp[half][n][3] + e_high};
            if (half + 1 == kHalves) mask_after(w, half * 64 + n * 8 + 2 * (lane & 3), low, high);
            weights[half * 4 + n / 2][2 * (n & 1)] = pack(w[0], w[1]);
            weights[half * 4 + n / 2][2 * (n & 1) + 1] = pack(w[2], w[3]);
          }
        begin_products();
#pragma unroll
        for (int step = 0; step < kColumns / 16; ++step)
          product<Major::kMN>(dphi, weights[step], operand<Major::kMN>(phi_k, 0, step), true);
        commit_products();
        store_scaled_rows<kFeatures>(scaled_phi_q, row0, phi_q, inverse_low, inverse_high, lane);  // R, while the products run
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
          float grad[kHead / 8][4];
          begin_products();
#pragma unroll
          for (int step = 0; step < kSteps; ++step)
            product<Major::kMN>(grad, grad_y[step], operand<Major::kMN>(weight, 0, step), step > 0);
          commit_products();
          store_rows<kFeatures>(grad_y_q, row0, grad_y, lane);
          make_visible_to_wgmma();
          wait_products<0>();
          settle(grad);
          stage_rows<kHead>(scratch, row0, grad, 1.0F, 1.0F, lane);
          send_rows(maps.grad_q, scratch, row0, 0, first, head, batch, lane);
        } else {
          stage_rows<kFeatures>(grad_y_k, row0, dphi, inverse_low, inverse_high, lane);
          send_rows(maps.grad_q, grad_y_k, row0, 0, first, head, batch, lane);
        }
      };
      if (group == 0) {
        rows.template operator()<64>();
      } else {
        rows.template operator()<128>();
      }
    } else {
      store_scaled_rows<kFeatures>(scaled_phi_q, row0, phi_q, inverse_low, inverse_high, lane);
      make_visible_to_wgmma();
    }
    __syncthreads();
    if constexpr (Memory::kStages == 2) copy_state(chunk - 1);

    const auto free_scratch = [&] {
      if (lane == 0) wait_stores_read();
      __syncwarp();
    };
    // What needs R, e and d y of the queries alone; waited for where the registers are used next.
    const auto start_sums = [&] {
      if (group == 0) {
#pragma unroll
        for (int step = 0; step < kChunk / 16; ++step)
          product<Major::kMN, Major::kMN>(sum, operand<Major::kMN>(grad_o_tile, 0, step), operand<Major::kMN>(scaled_phi_q, 0, step), true);
      } else if constexpr (kMap && kRowPart) {
#pragma unroll
        for (int step = 0; step < kChunk / 16; ++step)
          product<Major::kMN, Major::kMN>(sum, operand<Major::kMN>(Tile<kHead>{stage + Memory::kQ}, 0, step), operand<Major::kMN>(grad_y_q, 0, step), true);
      }
      commit_products();
    };
    const auto share_sums = [&] {
      if (group == 0) {
        share.template add<kChunk / 4>(own_share(scaled_phi_q), 0, kChunk / 4, lane, [&](int row) {
          uint32_t hi, lo;
          split(e_shared[share_begin + row], e_shared[share_begin + row + 1], hi, lo);
          return lane < 4 ? hi : lane < 8 ? lo : 0u;
        });
      } else if constexpr (kMap && kRowPart) {
        uint32_t hi, lo;
        split(1.0F / a.rule.scale, 1.0F / a.rule.scale, hi, lo);
        const uint32_t unscale = lane < 4 ? hi : lane < 8 ? lo : 0u;
        share.template add<kChunk / 4>(own_share(grad_y_q), 0, kChunk / 4, lane, [unscale](int) { return unscale; });
      }
    };

    if constexpr (kColumnPart) {
      // kColumns: the queries that can see the keys of this warpgroup, the chunk's last ones.
      const auto columns = [&]<int kColumns>() {
        constexpr int kFirst = kChunk - kColumns, kHalves = kColumns / 64;
        float p[8][4], dp[8][4], dv[kHead / 8][4], dphi[kFeatures / 8][4];
        const auto weigh = [&](int row) {
#pragma unroll
          for (int step = 0; step < kSteps; ++step)
            product<Major::kK>(p, own_phi_k[step], operand<Major::kK>(scaled_phi_q, row, step), step > 0);
#pragma unroll
          for (int step = 0; step < kHeadSteps; ++step)
            product<Major::kK, Major::kK>(dp, operand<Major::kK>(v_tile, group * 64, step), operand<Major::kK>(grad_o_tile, row, step), step > 0);
          commit_products();
        };
        begin_products();
        weigh(kFirst);
#pragma unroll
        for (int step = 0; step < kSteps; ++step) {
          product<Major::kK>(dv, own_phi_k[step], operand<Major::kK>(ds_hi, 0, step), step > 0);
          product<Major::kK>(dv, own_phi_k[step], operand<Major::kK>(ds_lo, 0, step), true);
        }
#pragma unroll
        for (int step = 0; step < kHeadSteps; ++step) {
          product<Major::kK, Major::kMN>(dphi, operand<Major::kK>(v_tile, group * 64, step), operand<Major::kMN>(ds_hi, 0, step), step > 0);
          product<Major::kK, Major::kMN>(dphi, operand<Major::kK>(v_tile, group * 64, step), operand<Major::kMN>(ds_lo, 0, step), true);
        }
        start_sums();
        share_sums();
        uint32_t weights[4][4], grad_weights[4][4];
#pragma unroll
        for (int half = 0; half < kHalves; ++half) {
          const int row = kFirst + half * 64;
          if (half == 0) {
            wait_products<1>();
          } else {
            begin_products();
            weigh(row);
            wait_products<0>();
          }
          settle(p);
          settle(dp);
#pragma unroll
          for (int n = 0; n < 8; ++n) {
            const float2 e_pair = *reinterpret_cast<const float2*>(e_shared + row + 8 * n + 2 * (lane & 3));
            float w[4] = {p[n][0], p[n][1], p[n][2], p[n][3]};
            float g[4] = {dp[n][0] + e_pair.x, dp[n][1] + e_pair.y, dp[n][2] + e_pair.x, dp[n][3] + e_pair.y};
            if (half == 0) {
              mask_before(w, row + n * 8 + 2 * (lane & 3), low, high);
              mask_before(g, row + n * 8 + 2 * (lane & 3), low, high);
            }
            weights[n / 2][2 * (n & 1)] = pack(w[0], w[1]);
            weights[n / 2][2 * (n & 1) + 1] = pack(w[2], w[3]);
            grad_weights[n / 2][2 * (n & 1)] = pack(g[0], g[1]);
            grad_weights[n / 2][2 * (n & 1) + 1] = pack(g[2], g[3]);
          }
          begin_products();
#pragma unroll
          for (int step = 0; step < 4; ++step) {
            product<Major::kMN>(dv, weights[step], operand<Major::kMN>(grad_o_tile, row, step), true);
            product<Major::kMN>(dphi, grad_weights[step], operand<Major::kMN>(scaled_phi_q, row, step), true);
          }
          commit_products();
          wait_products<0>();
        }
        settle(dv);
        settle(dphi);
        settle(sum);
        // The own rows of v have served everybody: d v leaves through them.
        stage_rows<kHead>(v_tile, row0, dv, 1.0F, 1.0F, lane);
        send_rows(maps.grad_v, v_tile, row0, 0, first, head, batch, lane);
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
        if constexpr (kMap) {
          uint32_t grad_y[kSteps][4];
#pragma unroll
          for (int n = 0; n < kFeatures / 8; ++n) {
            const float2 phi_low = unpack(own_phi_k[n / 2][2 * (n & 1)]), phi_high = unpack(own_phi_k[n / 2][2 * (n & 1) + 1]);
            grad_y[n / 2][2 * (n & 1)] = pack(phi_low.x > 0.0F ? dphi[n][0] : 0.0F, phi_low.y > 0.0F ? dphi[n][1] : 0.0F);
            grad_y[n / 2][2 * (n & 1) + 1] = pack(phi_high.x > 0.0F ? dphi[n][2] : 0.0F, phi_high.y > 0.0F ? dphi[n][3] : 0.0F);
          }
          float grad[kHead / 8][4];
          begin_products();
#pragma unroll
          for (int step = 0; step < kSteps; ++step)
            product<Major::kMN>(grad, grad_y[step], operand<Major::kMN>(weight, 0, step), step > 0);
          commit_products();
          store_rows<kFeatures>(grad_y_k, row0, grad_y, lane);
          make_visible_to_wgmma();
          wait_products<0>();
          settle(grad);
          free_scratch();
          stage_rows<kHead>(scratch, row0, grad, 1.0F, 1.0F, lane);
          send_rows(maps.grad_k, scratch, row0, 0, first, head, batch, lane);
        } else {
          free_scratch();
          stage_rows<kFeatures>(grad_y_k, row0, dphi, 1.0F, 1.0F, lane);
          send_rows(maps.grad_k, grad_y_k, row0, 0, first, head, batch, lane);
        }
      };
      if (group == 0) {
        columns.template operator()<128>();
      } else {
        columns.template operator()<64>();
      }
      __syncthreads();
    } else {
      begin_products();
      start_sums();
      share_sums();
      wait_products<0>();
      settle(sum);
    }
    if (group == 0) {
      publish_state();
    } else if constexpr (kMap && kColumnPart) {
      begin_products();
#pragma unroll
      for (int step = 0; step < kChunk / 16; ++step)
        product<Major::kMN, Major::kMN>(sum, operand<Major::kMN>(Tile<kHead>{stage + Memory::kK}, 0, step), operand<Major::kMN>(grad_y_k, 0, step), true);
      commit_products();
      const uint32_t ones = ones_column(lane);
      share.template add<kChunk / 4>(own_share(grad_y_k), 0, kChunk / 4, lane, [ones](int) { return ones; });
      wait_products<0>();
      settle(sum);
    }
    if constexpr (Memory::kStages == 1) {
      if (lane == 0) wait_stores_read();
      __syncthreads();
      copy_chunk(chunk - 1);
      copy_state(chunk - 1);
    }
  }

  if (lane == 0) wait_stores_read();
  __syncthreads();
  share.for_each(lane, [&](int feature, float value) { e_shared[warp * kFeatures + feature] = value; });  // e has done its work
  __syncthreads();
  // Transposed: a value of row `low` or `high` (a column of the result) and of feature n; then the sum of the warps' shares.
  const auto write_transposed = [&](float* to, float* to_shares) {
#pragma unroll
    for (int n = 0; n < kFeatures / 8; ++n)
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const int feature = n * 8 + 2 * (lane & 3) + (i & 1), column = (i < 2 ? low : high) - group * 64;
        if (feature < features) to[feature * kHead + column] = sum[n][i];
      }
    const int feature = tid & 127;
    if (feature < features) {
      const float* const from = e_shared + group * 4 * kFeatures + feature;
      to_shares[feature] = (from[0] + from[kFeatures]) + (from[2 * kFeatures] + from[3 * kFeatures]);
    }
  };
  if (group == 0) {
    if constexpr (kPart == BackwardPart::kRows) {
      float* const part = a.sums + (int64_t{item} * a.plan.segments + segment) * a.plan.sums_floats;
      write_transposed(part, part + features * kHead);
    } else if (a.grad_initial_s != nullptr && segment == 0) {
      write_transposed(a.grad_initial_s + int64_t{item} * features * kHead, a.grad_initial_z + int64_t{item} * features);
    }
  } else if constexpr (kMap) {
    constexpr int kLaunches = kPart == BackwardPart::kAll ? 1 : 2, kLaunch = kPart == BackwardPart::kColumns ? 1 : 0;
    float* const part = a.grad_weight + ((int64_t{item} * a.plan.segments + segment) * kLaunches + kLaunch) * (kHead + 2) * features;
    write_transposed(part, part + features * kHead);
    if ((tid & 127) < features) part[features * kHead + features + (tid & 127)] = 0.0F;
  }
#else
  __trap();
#endif
}

/// Launches one kernel, or, where the sequences are cut, the kernels of the two parts with the scan in between.
inline cudaError_t launch_backward_kernels(Kernel* all, Kernel* rows, Kernel* columns, int threads, int bytes, const CausalArguments& a, cudaStream_t stream) {
  TensorMaps maps;
  cudaError_t error = make_tensor_maps(a, true, maps);
  if (error != cudaSuccess) return error;
  const auto launch = [&](Kernel* kernel) {
    const cudaError_t failed = cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes);
    if (failed != cudaSuccess) return failed;
    kernel<<<dim3(a.shape.batch * a.shape.query_heads, a.plan.segments), threads, bytes, stream>>>(a, maps);  // early: measured slower
    return cudaGetLastError();
  };
  if (a.plan.segments == 1) return launch(all);
  error = launch(rows);
  if (error == cudaSuccess) error = scan_segments(a, true, stream);
  return error == cudaSuccess ? launch(columns) : error;
}

template <int kFeatures, bool kMap>
cudaError_t launch_backward(const CausalArguments& a, cudaStream_t stream) {
  constexpr int kBytes = BackwardMemory<kFeatures, kMap>::kBytes;
  static_assert(kBytes <= 227 * 1024);
  return launch_backward_kernels(&causal_backward_kernel<kFeatures, kMap, BackwardPart::kAll>,
                                 &causal_backward_kernel<kFeatures, kMap, BackwardPart::kRows>,
                                 &causal_backward_kernel<kFeatures, kMap, BackwardPart::kColumns>, kThreads, kBytes, a, stream);
}

}  // namespace t2r::kernels::cuda::sm90
