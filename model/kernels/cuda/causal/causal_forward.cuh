#pragma once

#include "model/kernels/cuda/causal/causal_common.cuh"
#include "model/kernels/cuda/causal/causal_memory.h"

namespace t2r::kernels::cuda {

/// One block of threads walks one segment of one sequence and query head, chunk by chunk; warp i
/// owns 16 rows of a chunk. With `kSumsOnly` it writes the segment's own sums of phi(k) v^T and
/// phi(k) and nothing else.
///
/// Per chunk: features of the own rows (registers, and for keys shared memory) | barrier | causal
/// block products and phi(q) S, o written; S += phi(k)^T v in registers | barrier | S rounded to hi
/// + lo in shared memory.
template <int kHead, int kFeatures, int kChunk, bool kMap, bool kSumsOnly>
__global__ void __launch_bounds__(kChunk * 2, 1)
    causal_forward_kernel(const __grid_constant__ CausalArguments a) {
  using Memory = ForwardMemory<kHead, kFeatures, kChunk, kMap>;
  constexpr int kWarps = kChunk / 16, kInput = Memory::kInput, kSteps = kFeatures / 16;
  extern __shared__ __align__(128) unsigned char memory[];
  const uint32_t base = shared_address(memory);
  float* const z_shared = reinterpret_cast<float*>(memory + Memory::kZ);
  bf16* const z_split = reinterpret_cast<bf16*>(memory + Memory::kZSplit);  // [hi, lo][kFeatures]
  float* const bias = reinterpret_cast<float*>(memory + Memory::kBias);
  const Tile<kHead> weight{base + Memory::kWeight};
  const Tile<kHead> s_hi{base + Memory::kState},
      s_lo{base + Memory::kState + kFeatures * kHead * 2};

  const Shape& shape = a.shape;
  const int item = blockIdx.x, segment = blockIdx.y;
  const int batch = item / shape.query_heads, head = item % shape.query_heads;
  const int state_head = head / (shape.query_heads / shape.state_heads);
  const int tid = threadIdx.x, lane = tid & 31, warp = tid >> 5;
  const int block = row_block_of<kWarps>(warp), row0 = block * 16;
  const int features = shape.feature_size;
  const int chunk_begin = segment * a.plan.chunks_per_segment;
  const int chunk_end = min(chunk_begin + a.plan.chunks_per_segment, a.plan.chunks);
  const int input_units = kMap ? kHead / 8 : (features + 7) / 8;

  const bf16* const q = kSumsOnly ? nullptr : rows_of(a.q, batch, head);
  const bf16* const k = rows_of(a.k, batch, state_head / (shape.state_heads / shape.key_heads));
  const bf16* const v = rows_of(a.v, batch, state_head / (shape.state_heads / shape.value_heads));
  const int* const starts =
      a.document_start == nullptr ? nullptr : a.document_start + int64_t{batch} * shape.length;

  const auto copy_chunk = [&](int chunk) {
    if (chunk < chunk_end) {
      const uint32_t stage = base + ((chunk - chunk_begin) % Memory::kStages) * Memory::kStage;
      const int64_t first = int64_t{chunk} * kChunk;
      const int valid = min(kChunk, shape.length - static_cast<int>(first));
      if constexpr (!kSumsOnly) {
        copy_rows_async(Tile<kInput>{stage + Memory::kQ},
                        q + first * a.q.token_stride,
                        a.q.token_stride,
                        row0,
                        valid,
                        input_units,
                        lane);
      }
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
    }
    commit_copies();
  };

  if constexpr (kMap) {
    copy_weight_async<kHead, kFeatures, kChunk * 2>(
        [&](int row, int unit) { return weight.at(row, unit); }, a.weight, state_head, features);
  }
  copy_chunk(chunk_begin);
  copy_chunk(chunk_begin + 1);
  if constexpr (kMap) {
    load_bias<kFeatures, kChunk * 2>(bias, a.bias, state_head, features);
  }

  // The state before the first token of this segment.
  SharedProduct<kFeatures, kHead, kWarps> s(warp);
  WeightedColumnSums<kFeatures> z;  // of the warp with block 0, which has the least other work
  const auto add_state = [&](const float* from_s, const float* from_z) {
    s.for_each_pair(lane, [&](int row, int column, float* pair) {
      if (row >= features) return;
      pair[0] += from_s[row * kHead + column];
      pair[1] += from_s[row * kHead + column + 1];
    });
    if (block == 0 && (lane & 3) == 0) {
#pragma unroll
      for (int m = 0; m < kFeatures / 16; ++m) {
        const int low = m * 16 + lane / 4;
        if (low < features) z.value[m][0] += from_z[low];
        if (low + 8 < features) z.value[m][2] += from_z[low + 8];
      }
    }
  };
  if (!kSumsOnly) {
    if (a.plan.segments > 1) {
      const float* const sums =
          a.sums + (int64_t{item} * a.plan.segments + segment) * a.plan.sums_floats;
      add_state(sums, sums + features * kHead);
    } else if (a.initial_s != nullptr) {
      const int64_t state = int64_t{batch} * shape.state_heads + state_head;
      add_state(a.initial_s + state * features * kHead, a.initial_z + state * features);
    }
  }
  const auto publish_state = [&] {
    if constexpr (!kSumsOnly) {
      s.store_split(s_hi, s_lo, lane);
      if (block == 0) {
        z.for_each(lane, [&](int feature, float sum) {
          const bf16 hi = __float2bfloat16(sum);
          z_shared[feature] = sum;
          z_split[feature] = hi;
          z_split[kFeatures + feature] = __float2bfloat16(sum - __bfloat162float(hi));
        });
      }
    }
  };
  publish_state();
  wait_copies<1>();
  __syncthreads();

  for (int chunk = chunk_begin; chunk < chunk_end; ++chunk) {
    const uint32_t stage = base + ((chunk - chunk_begin) % Memory::kStages) * Memory::kStage;
    const Tile<kInput> q_tile{stage + Memory::kQ}, k_tile{stage + Memory::kK};
    const Tile<kHead> v_tile{stage + Memory::kV};
    const Tile<kFeatures> phi_k{kMap ? base + Memory::kPhiK : stage + Memory::kK};
    const int first = chunk * kChunk, valid = min(kChunk, shape.length - first);
    const int low = row0 + lane / 4, high = low + 8;

    wait_copies<1>();
    __syncwarp();
    uint32_t phi_q[kSteps][4];
    if constexpr (kMap) {
      float y[kFeatures / 8][4];
      uint32_t phi[kSteps][4];
      project<kHead, kFeatures>(y, k_tile, weight, row0, lane);
      activate<kFeatures>(phi, y, bias, 1.0F, low < valid, high < valid, lane);
      store_rows<kFeatures>(phi_k, row0, phi, lane);
      if constexpr (!kSumsOnly) {
        project<kHead, kFeatures>(y, q_tile, weight, row0, lane);
        activate<kFeatures>(phi_q, y, bias, a.rule.scale, true, true, lane);
      }
    } else if constexpr (!kSumsOnly) {
#pragma unroll
      for (int step = 0; step < kSteps; ++step) q_tile.load_a(phi_q[step], row0, 2 * step, lane);
    }
    __syncthreads();

    int last_start = 0;  // relative to the chunk: where the document of its last token begins
    CausalMask mask{-1, -1};
    if (starts != nullptr) {
      last_start = starts[first + valid - 1] - first;
      mask = {starts[min(first + low, shape.length - 1)] - first,
              starts[min(first + high, shape.length - 1)] - first};
    }

    if constexpr (!kSumsOnly) {
      if (a.states != nullptr && (chunk > 0 || a.initial_s != nullptr)) {
        unsigned char* const record =
            a.states + (int64_t{item} * a.plan.chunks + chunk) * a.plan.state_record_bytes;
        for (int i = tid; i < (4 * kFeatures * kHead + 4 * kFeatures) / 16; i += kChunk * 2) {
          reinterpret_cast<uint4*>(record)[i] = load_shared_16(base + Memory::kState + 16 * i);
        }
      }
      float num[kHead / 8][4] = {};
      float den[4] =
          {};  // column 0: sum of the block products and of phi(q) hi(z); column 1: phi(q) lo(z)
      const uint32_t ones = ones_column(lane);
#pragma unroll
      for (int step = 0; step < kSteps; ++step) {  // from before the chunk
        uint32_t from_before[4];
#pragma unroll
        for (int i = 0; i < 4; ++i) from_before[i] = phi_q[step][i];
        if (mask.start_low >= 0) from_before[0] = from_before[2] = 0;
        if (mask.start_high >= 0) from_before[1] = from_before[3] = 0;
        uint32_t z0 = 0, z1 = 0;
        if (lane < 8) {
          const auto* const pairs =
              reinterpret_cast<const uint32_t*>(z_split + (lane / 4) * kFeatures + step * 16);
          z0 = pairs[lane & 3];
          z1 = pairs[4 + (lane & 3)];
        }
        mma(den, from_before, z0, z1);
#pragma unroll
        for (int n = 0; n < kHead / 16; ++n) {
          uint32_t b[4];
          s_hi.load_b_transposed(b, step * 16, 2 * n, lane);
          mma(num[2 * n], from_before, b[0], b[1]);
          mma(num[2 * n + 1], from_before, b[2], b[3]);
          s_lo.load_b_transposed(b, step * 16, 2 * n, lane);
          mma(num[2 * n], from_before, b[0], b[1]);
          mma(num[2 * n + 1], from_before, b[2], b[3]);
        }
      }
      for (int j = 0; j <= block; ++j) {  // inside the chunk
        float p[2][4] = {};
#pragma unroll
        for (int step = 0; step < kSteps; ++step) {
          uint32_t b[4];
          phi_k.load_b(b, j * 16, 2 * step, lane);
          mma(p[0], phi_q[step], b[0], b[1]);
          mma(p[1], phi_q[step], b[2], b[3]);
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
        const uint32_t weights[4] = {pack(p[0][0], p[0][1]),
                                     pack(p[0][2], p[0][3]),
                                     pack(p[1][0], p[1][1]),
                                     pack(p[1][2], p[1][3])};
        mma(den, weights, ones, ones);
#pragma unroll
        for (int n = 0; n < kHead / 16; ++n) {
          uint32_t b[4];
          v_tile.load_b_transposed(b, j * 16, 2 * n, lane);
          mma(num[2 * n], weights, b[0], b[1]);
          mma(num[2 * n + 1], weights, b[2], b[3]);
        }
      }
      const float den_low = __shfl_sync(0xffffffffu, den[0] + den[1], lane & ~3);
      const float den_high = __shfl_sync(0xffffffffu, den[2] + den[3], lane & ~3);
      const Tile<kHead> scratch{Memory::kOwnScratch ? base + Memory::kScratch : stage + Memory::kQ};
      __syncwarp();
      stage_rows<kHead>(scratch,
                        row0,
                        num,
                        1.0F / fmaxf(den_low + a.rule.added, a.rule.floor),
                        1.0F / fmaxf(den_high + a.rule.added, a.rule.floor),
                        lane);
      write_rows<kHead>(mutable_rows_of(a.o, batch, head) + first * a.o.token_stride,
                        a.o.token_stride,
                        scratch,
                        row0,
                        row0,
                        valid,
                        kHead / 8,
                        lane);
    }

    if (starts != nullptr && last_start >= 0) {
      s.clear();
      z.clear();
    }
    s.template add<kChunk>(phi_k, v_tile, last_start, kChunk, lane);
    if (block == 0) {
      const uint32_t ones = ones_column(lane);
      z.template add<kChunk>(phi_k, last_start, kChunk, lane, [ones](int) { return ones; });
    }
    __syncthreads();
    if (chunk + 1 < chunk_end) publish_state();
    copy_chunk(chunk + 2);
  }

  const auto write_state = [&](float* to_s, float* to_z) {
    s.for_each_pair(lane, [&](int row, int column, const float* pair) {
      if (row < features)
        *reinterpret_cast<float2*>(to_s + row * kHead + column) = {pair[0], pair[1]};
    });
    if (block == 0)
      z.for_each(lane, [&](int feature, float sum) {
        if (feature < features) to_z[feature] = sum;
      });
  };
  if constexpr (kSumsOnly) {
    float* const sums = a.sums + (int64_t{item} * a.plan.segments + segment) * a.plan.sums_floats;
    write_state(sums, sums + features * kHead);
  } else if (a.final_s != nullptr && segment + 1 == a.plan.segments &&
             head % (shape.query_heads / shape.state_heads) == 0) {
    const int64_t state = int64_t{batch} * shape.state_heads + state_head;
    write_state(a.final_s + state * features * kHead, a.final_z + state * features);
  }
}

template <int kHead, int kFeatures, int kChunk, bool kMap>
cudaError_t launch_forward(const CausalArguments& a, cudaStream_t stream) {
  using Memory = ForwardMemory<kHead, kFeatures, kChunk, kMap>;
  const dim3 grid(a.shape.batch * a.shape.query_heads, a.plan.segments);
  const auto launch = [&](auto* kernel, dim3 blocks) {
    const cudaError_t error =
        cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, Memory::kBytes);
    if (error != cudaSuccess) return error;
    kernel<<<blocks, kChunk * 2, Memory::kBytes, stream>>>(a);
    return cudaGetLastError();
  };
  if (a.plan.segments > 1) {
    const cudaError_t error = launch(causal_forward_kernel<kHead, kFeatures, kChunk, kMap, true>,
                                     dim3(grid.x, grid.y - 1));
    if (error != cudaSuccess) return error;
    const cudaError_t scan_error = scan_segments(a, false, stream);
    if (scan_error != cudaSuccess) return scan_error;
  }
  return launch(causal_forward_kernel<kHead, kFeatures, kChunk, kMap, false>, grid);
}

}  // namespace t2r::kernels::cuda
