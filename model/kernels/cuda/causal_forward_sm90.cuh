#pragma once

#include "model/kernels/cuda/bulk_copy_sm90.cuh"
#include "model/kernels/cuda/causal_common.cuh"
#include "model/kernels/cuda/tensor_core_sm90.cuh"

namespace t2r::kernels::cuda::sm90 {

constexpr int kHead = 64, kChunk = 128, kThreads = 256;

/// Bytes of a saved state: S^T as hi and lo bf16 tiles ([kHead][kFeatures]), z in float32.
template <int kFeatures>
inline constexpr int kRecordBytes = 4 * kFeatures * kHead + 4 * kFeatures;

constexpr int round_up(int bytes, int to) { return (bytes + to - 1) / to * to; }

/// How the copy engine sees the tensors: boxes of a chunk's tokens are read, boxes of 16 (a warp's rows) written; by the backward
/// for head size 128, boxes of a chunk; by the forward for 32 features, boxes of 64 are read and written.
struct TensorMaps {
  CUtensorMap q, k, v, o;
  CUtensorMap grad_o, grad_q, grad_k, grad_v;
};

/// Shared memory of the forward kernel; tiles begin at multiples of 1,024 bytes, where the swizzle's pattern does.
template <int kFeatures, bool kMap>
struct ForwardMemory {
  static constexpr int kInput = kMap ? kHead : kFeatures;
  static constexpr int kQ = 0;
  static constexpr int kK = kQ + kChunk * kInput * 2;
  static constexpr int kV = kK + kChunk * kInput * 2;
  static constexpr int kStage = kV + kChunk * kHead * 2;
  static constexpr int kRest = (kMap ? kFeatures * (kHead + kChunk) * 2 : 0) + (kInput < kHead ? kChunk * kHead * 2 : 0) +
                               2 * round_up(kRecordBytes<kFeatures>, 1024) + 4 * kFeatures + 64 + 1024;
  static constexpr int kStages = (227 * 1024 - kRest) / kStage < 4 ? (227 * 1024 - kRest) / kStage : 4;
  static constexpr int kWeight = kStages * kStage;
  static constexpr int kPhiK = kWeight + (kMap ? kFeatures * kHead * 2 : 0);
  static constexpr int kScratch = kPhiK + (kMap ? kChunk * kFeatures * 2 : 0);
  static constexpr bool kOwnScratch = kInput < kHead;
  static constexpr int kState = kScratch + (kOwnScratch ? kChunk * kHead * 2 : 0);  // two records, written in turn
  static constexpr int kStateStride = round_up(kRecordBytes<kFeatures>, 1024);
  static constexpr int kBias = kState + 2 * kStateStride;
  static constexpr int kBarriers = kBias + 4 * kFeatures;
  static constexpr int kBytes = kBarriers + 8 * kStages + 1024;  // the base is rounded up
};

/// Fragments of a 64 x 16 matrix whose row 0 is `row0` and row 1 is `row1` (packed pairs), the rest zero.
__device__ __forceinline__ void two_rows(uint32_t (&a)[4], int warp_in_group, int lane, uint32_t k0, uint32_t k8) {
  const bool mine = warp_in_group == 0 && lane < 8;
  a[0] = mine ? k0 : 0u;
  a[1] = 0;
  a[2] = mine ? k8 : 0u;
  a[3] = 0;
}

/// Clears what rows `low` (the first two values) and `high` (the others) cannot see: columns `column` and column + 1 after them,
__device__ __forceinline__ void mask_after(float (&w)[4], int column, int low, int high) {
  if (column > low) w[0] = 0.0F;
  if (column + 1 > low) w[1] = 0.0F;
  if (column > high) w[2] = 0.0F;
  if (column + 1 > high) w[3] = 0.0F;
}
/// or before them.
__device__ __forceinline__ void mask_before(float (&w)[4], int column, int low, int high) {
  if (column < low) w[0] = 0.0F;
  if (column + 1 < low) w[1] = 0.0F;
  if (column < high) w[2] = 0.0F;
  if (column + 1 < high) w[3] = 0.0F;
}

/// causal_forward_kernel on Hopper: the same walk with two warpgroups of 64 rows each. The state is kept transposed in the
/// first warpgroup's registers, whose share of the triangle is the smaller one.
template <int kFeatures, bool kMap, bool kSumsOnly>
__global__ void __launch_bounds__(kThreads, 1) causal_forward_kernel(const __grid_constant__ CausalArguments a,
                                                                     const __grid_constant__ TensorMaps maps) {
#ifdef __CUDA_ARCH_FEAT_SM90_ALL
  using Memory = ForwardMemory<kFeatures, kMap>;
  constexpr int kInput = Memory::kInput, kSteps = kFeatures / 16, kHeadSteps = kHead / 16;
  extern __shared__ unsigned char unaligned_memory[];
  unsigned char* const memory = unaligned_memory + (-shared_address(unaligned_memory) & 1023);
  const uint32_t base = shared_address(memory);
  float* const bias = reinterpret_cast<float*>(memory + Memory::kBias);
  const Tile<kHead> weight{base + Memory::kWeight};

  const Shape& shape = a.shape;
  const int item = blockIdx.x, segment = blockIdx.y;
  const int batch = item / shape.query_heads, head = item % shape.query_heads;
  const int state_head = head / (shape.query_heads / shape.state_heads);
  const int tid = threadIdx.x, lane = tid & 31, warp = __shfl_sync(0xffffffffu, tid >> 5, 0);  // uniform, and known to be
  const int group = warp >> 2, row0 = warp * 16;
  const int low = row0 + lane / 4, high = low + 8;
  const int features = shape.feature_size;
  const int chunk_begin = segment * a.plan.chunks_per_segment;
  const int chunk_end = min(chunk_begin + a.plan.chunks_per_segment, a.plan.chunks);
  const int key_head = state_head / (shape.state_heads / shape.key_heads);
  const int value_head = state_head / (shape.state_heads / shape.value_heads);

  const auto copy_chunk = [&](int chunk) {
    if (tid != 0 || chunk >= chunk_end) return;
    const int slot = (chunk - chunk_begin) % Memory::kStages;
    const uint32_t stage = base + slot * Memory::kStage, barrier = base + Memory::kBarriers + 8 * slot;
    expect_bytes(barrier, kSumsOnly ? Memory::kStage - Memory::kK : Memory::kStage);
    load_tile(stage + Memory::kK, maps.k, barrier, 0, chunk * kChunk, key_head, batch);
    if constexpr (!kSumsOnly) load_tile(stage + Memory::kQ, maps.q, barrier, 0, chunk * kChunk, head, batch);
    load_tile(stage + Memory::kV, maps.v, barrier, 0, chunk * kChunk, value_head, batch);
  };

  if (tid == 0) {
    for (int slot = 0; slot < Memory::kStages; ++slot) init_barrier(base + Memory::kBarriers + 8 * slot);
    publish_barriers();
  }
  wait_for_earlier_kernels();
  if (tid == 0) {
    for (int ahead = 0; ahead < Memory::kStages - 1; ++ahead) copy_chunk(chunk_begin + ahead);
  }
  if constexpr (kMap) {
    copy_weight_async<kHead, kFeatures, kThreads>([&](int row, int unit) { return weight.at(row, unit); }, a.weight, state_head, features);
  }
  commit_copies();
  if constexpr (kMap) {
    load_bias<kFeatures, kThreads>(bias, a.bias, state_head, features);
  }

  // S^T ([kHead][kFeatures]) and, in row 0, z: of the first warpgroup.
  float s[kFeatures / 8][4] = {}, z[kFeatures / 8][4] = {};
  const auto add_state = [&](const float* from_s, const float* from_z) {
#pragma unroll
    for (int n = 0; n < kFeatures / 8; ++n)
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const int feature = n * 8 + 2 * (lane & 3) + (i & 1), column = i < 2 ? low : high;
        if (feature >= features) continue;
        s[n][i] += from_s[feature * kHead + column];
        if (warp == 0 && lane < 4 && i < 2) z[n][i] += from_z[feature];
      }
  };
  if (!kSumsOnly && group == 0) {
    if (a.plan.segments > 1) {
      const float* const sums = a.sums + (int64_t{item} * a.plan.segments + segment) * a.plan.sums_floats;
      add_state(sums, sums + features * kHead);
    } else if (a.initial_s != nullptr) {
      const int64_t state = int64_t{batch} * shape.state_heads + state_head;
      add_state(a.initial_s + state * features * kHead, a.initial_z + state * features);
    }
  }
  const auto publish_state = [&](int turn) {
    if constexpr (!kSumsOnly) {
      const uint32_t record = base + Memory::kState + turn * Memory::kStateStride;
      const Tile<kFeatures> hi{record}, lo{record + kFeatures * kHead * 2};
      store_split_rows(hi, lo, row0, s, lane);
      if (warp == 0 && lane < 4) {
        float2* const to = reinterpret_cast<float2*>(memory + Memory::kState + turn * Memory::kStateStride + 4 * kFeatures * kHead);
#pragma unroll
        for (int n = 0; n < kFeatures / 8; ++n) to[n * 4 + lane] = {z[n][0], z[n][1]};
      }
    }
  };
  if (group == 0) publish_state(0);

  for (int chunk = chunk_begin; chunk < chunk_end; ++chunk) {
    const int turn = (chunk - chunk_begin) & 1;
    const uint32_t stage = base + (chunk - chunk_begin) % Memory::kStages * Memory::kStage;
    const Tile<kInput> q_tile{stage + Memory::kQ}, k_tile{stage + Memory::kK};
    const Tile<kHead> v_tile{stage + Memory::kV};
    const Tile<kFeatures> phi_k{kMap ? base + Memory::kPhiK : stage + Memory::kK};
    const uint32_t record = base + Memory::kState + turn * Memory::kStateStride;
    const float* const z_shared = reinterpret_cast<const float*>(memory + Memory::kState + turn * Memory::kStateStride + 4 * kFeatures * kHead);
    const int first = chunk * kChunk, valid = min(kChunk, shape.length - first);

    if (chunk == chunk_begin) wait_copies<0>();  // the map's weights
    if (lane == 0) wait_stores_read();
    make_visible_to_wgmma();
    __syncthreads();  // the state before the chunk is here; everybody is done with the chunk before
    copy_chunk(chunk + Memory::kStages - 1);
    wait_barrier(base + Memory::kBarriers + 8 * ((chunk - chunk_begin) % Memory::kStages), (chunk - chunk_begin) / Memory::kStages & 1);

    uint32_t phi_q[kSteps][4];
    if constexpr (kMap) {
      float y_k[kFeatures / 8][4], y_q[kFeatures / 8][4];
      begin_products();
#pragma unroll
      for (int step = 0; step < kHeadSteps; ++step)
        product<Major::kK, Major::kK>(y_k, operand<Major::kK>(k_tile, group * 64, step), operand<Major::kK>(weight, 0, step), step > 0);
      commit_products();
      if constexpr (!kSumsOnly) {
#pragma unroll
        for (int step = 0; step < kHeadSteps; ++step)
          product<Major::kK, Major::kK>(y_q, operand<Major::kK>(q_tile, group * 64, step), operand<Major::kK>(weight, 0, step), step > 0);
      }
      commit_products();
      wait_products<1>();
      settle(y_k);
      uint32_t phi[kSteps][4];
      activate<kFeatures>(phi, y_k, bias, 1.0F, low < valid, high < valid, lane);
      store_rows<kFeatures>(phi_k, row0, phi, lane);
      make_visible_to_wgmma();
      wait_products<0>();
      if constexpr (!kSumsOnly) {
        settle(y_q);
        activate<kFeatures>(phi_q, y_q, bias, a.rule.scale, true, true, lane);
      }
      __syncthreads();
    } else if constexpr (!kSumsOnly) {
#pragma unroll
      for (int step = 0; step < kSteps; ++step) q_tile.load_a(phi_q[step], row0, 2 * step, lane);
    }

    const auto update_state = [&] {
      uint32_t ones[4];
      two_rows(ones, warp, lane, ones_column(lane), ones_column(lane));
#pragma unroll
      for (int step = 0; step < kChunk / 16; ++step) {
        product<Major::kMN, Major::kMN>(s, operand<Major::kMN>(v_tile, 0, step), operand<Major::kMN>(phi_k, 0, step), true);
        product<Major::kMN>(z, ones, operand<Major::kMN>(phi_k, 0, step), true);
      }
      commit_products();
    };
    if constexpr (kSumsOnly) {
      if (group == 0) {
        begin_products();
        update_state();
        wait_products<0>();
        settle(s);
        settle(z);
      }
    } else {
      if (a.states != nullptr && (chunk > 0 || a.initial_s != nullptr)) {
        if (tid == 0) {
          store_bytes(a.states + (int64_t{item} * a.plan.chunks + chunk) * a.plan.state_record_bytes, record, kRecordBytes<kFeatures>);
          commit_stores();
        }
      }
      // kColumns: how many of the chunk's tokens the rows of this warpgroup can see.
      const auto rows = [&]<int kColumns>() {
        float p[kColumns / 8][4], num[kHead / 8][4];
        const Tile<kFeatures> s_hi{record}, s_lo{record + kFeatures * kHead * 2};
        begin_products();
#pragma unroll
        for (int step = 0; step < kSteps; ++step)
          product<Major::kK>(p, phi_q[step], operand<Major::kK>(phi_k, 0, step), step > 0);
        commit_products();
#pragma unroll
        for (int step = 0; step < kSteps; ++step) {
          product<Major::kK>(num, phi_q[step], operand<Major::kK>(s_hi, 0, step), step > 0);
          product<Major::kK>(num, phi_q[step], operand<Major::kK>(s_lo, 0, step), true);
        }
        commit_products();
        if constexpr (kColumns == 64) update_state();
        float den_low = 0.0F, den_high = 0.0F;
#pragma unroll
        for (int n = 0; n < kFeatures / 8; ++n) {
          const float2 z_pair = *reinterpret_cast<const float2*>(z_shared + 8 * n + 2 * (lane & 3));
          const float2 phi_low = unpack(phi_q[n / 2][2 * (n & 1)]), phi_high = unpack(phi_q[n / 2][2 * (n & 1) + 1]);
          den_low = fmaf(phi_low.x, z_pair.x, fmaf(phi_low.y, z_pair.y, den_low));
          den_high = fmaf(phi_high.x, z_pair.x, fmaf(phi_high.y, z_pair.y, den_high));
        }
        wait_products<kColumns == 64 ? 2 : 1>();
        settle(p);
        uint32_t weights[kColumns / 16][4];
#pragma unroll
        for (int n = 0; n < kColumns / 8; ++n) {
          if (n * 8 + 7 > kColumns - 64) {
            const int column = n * 8 + 2 * (lane & 3);
            if (column > low) p[n][0] = 0.0F;
            if (column + 1 > low) p[n][1] = 0.0F;
            if (column > high) p[n][2] = 0.0F;
            if (column + 1 > high) p[n][3] = 0.0F;
          }
          weights[n / 2][2 * (n & 1)] = pack(p[n][0], p[n][1]);
          weights[n / 2][2 * (n & 1) + 1] = pack(p[n][2], p[n][3]);
          den_low += p[n][0] + p[n][1];
          den_high += p[n][2] + p[n][3];
        }
        begin_products();
#pragma unroll
        for (int step = 0; step < kColumns / 16; ++step)
          product<Major::kMN>(num, weights[step], operand<Major::kMN>(v_tile, 0, step), true);
        commit_products();
        const float scale_low = 1.0F / fmaxf(row_sum(den_low) + a.rule.added, a.rule.floor);
        const float scale_high = 1.0F / fmaxf(row_sum(den_high) + a.rule.added, a.rule.floor);
        wait_products<0>();
        settle(num);
        if constexpr (kColumns == 64) {
          settle(s);
          settle(z);
          if (chunk + 1 < chunk_end) publish_state(turn ^ 1);
        }
        const Tile<kHead> scratch{Memory::kOwnScratch ? base + Memory::kScratch : stage + Memory::kQ};
        stage_rows<kHead>(scratch, row0, num, scale_low, scale_high, lane);
        send_rows(maps.o, scratch, row0, 0, first, head, batch, lane);
      };
      if (group == 0) {
        rows.template operator()<64>();
      } else {
        rows.template operator()<128>();
      }
    }
  }

  if (lane == 0) wait_stores_read();  // shared memory may not go before
  if (group != 0) return;
  const auto write_state = [&](float* to_s, float* to_z) {
#pragma unroll
    for (int n = 0; n < kFeatures / 8; ++n)
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const int feature = n * 8 + 2 * (lane & 3) + (i & 1), column = i < 2 ? low : high;
        if (feature >= features) continue;
        to_s[feature * kHead + column] = s[n][i];
        if (warp == 0 && lane < 4 && i < 2) to_z[feature] = z[n][i];
      }
  };
  if constexpr (kSumsOnly) {
    float* const sums = a.sums + (int64_t{item} * a.plan.segments + segment) * a.plan.sums_floats;
    write_state(sums, sums + features * kHead);
  } else if (a.final_s != nullptr && segment + 1 == a.plan.segments && head % (shape.query_heads / shape.state_heads) == 0) {
    const int64_t state = int64_t{batch} * shape.state_heads + state_head;
    write_state(a.final_s + state * features * kHead, a.final_z + state * features);
  }
#else
  __trap();
#endif
}

/// Tensor maps of what `a` names; defined in causal_sm90.cu.
cudaError_t make_tensor_maps(const CausalArguments& a, bool backward, TensorMaps& maps);

using Kernel = void(CausalArguments, TensorMaps);

/// Launches one kernel, or, where the sequences are cut, the kernel that sums segments, the scan and the kernel.
inline cudaError_t launch_forward_kernels(Kernel* sums_only, Kernel* whole, int threads, int bytes, const CausalArguments& a, cudaStream_t stream) {
  TensorMaps maps;
  cudaError_t error = make_tensor_maps(a, false, maps);
  if (error != cudaSuccess) return error;
  const auto launch = [&](Kernel* kernel, int segments) {
    const cudaError_t failed = cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes);
    if (failed != cudaSuccess) return failed;
    return launch_early(true, kernel, dim3(a.shape.batch * a.shape.query_heads, segments), threads, bytes, stream, a, maps);
  };
  if (a.plan.segments > 1) {
    error = launch(sums_only, a.plan.segments - 1);
    if (error == cudaSuccess) error = scan_segments(a, false, stream);
    if (error != cudaSuccess) return error;
  }
  return launch(whole, a.plan.segments);
}

}  // namespace t2r::kernels::cuda::sm90
