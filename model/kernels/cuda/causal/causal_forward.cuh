#pragma once

#include "model/kernels/cuda/causal/causal_common.cuh"
#include "model/kernels/cuda/causal/causal_memory.h"

namespace t2r::kernels::cuda {

// The portable forward kernel. Symbols:
//
// phi(q), phi(k)      features, of one map y = W x + b: relu(y) times a scale for queries (phi_q,
//                     phi_k); or given instead of q and k
// S, z                before the chunk: sum of phi(k) v^T [features, head] and sum of phi(k)
// p                   weights phi(q) . phi(k) inside the chunk, 0 above the diagonal
// num, den            numerator phi(q) S + p v and denominator phi(q) . z + sum of p
// hi, lo              a float32 as a sum of two bf16, for products that must not round it
// low, high           a lane's two rows of accumulators
// fragment            what a lane holds of an operand of mma.sync (tensor_core.cuh)
//
// Barriers of a block of threads, per chunk: features of the keys are in shared memory | S and o
// have been read and written, so that S may be replaced. Everything else is a warp's own.

/// A block of threads of causal_forward_kernel: its place in the tensors and in shared memory, and
/// the state that it carries. Warp i owns 16 rows of a chunk, and some tiles of S.
template <int kHead, int kFeatures, int kChunk, bool kMap, bool kSumsOnly>
class ForwardBlock {
 public:
  using Memory = ForwardMemory<kHead, kFeatures, kChunk, kMap>;
  using Features = uint32_t[kFeatures / 16][4];  ///< of a warp's rows, as operands

  __device__ __forceinline__ ForwardBlock(const CausalArguments& arguments, unsigned char* shared)
      : a(arguments), memory(shared), s(threadIdx.x >> 5) {}

  /// Prologue: the loads of W, b and of two chunks begin; S and z before the segment's first token.
  __device__ __forceinline__ void start() {
    if constexpr (kMap) {
      copy_weight_async<kHead, kFeatures, kChunk * 2>(
          [&](int row, int unit) { return weight.at(row, unit); }, a.weight, state_head, features);
    }
    copy_chunk(chunk_begin);
    copy_chunk(chunk_begin + 1);
    if constexpr (kMap) {
      load_bias<kFeatures, kChunk * 2>(bias, a.bias, state_head, features);
    }
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
    publish_state();
    wait_copies<1>();
    __syncthreads();
  }

  /// One chunk: o of its rows, then S and z behind it.
  __device__ __forceinline__ void run(int chunk) {
    const uint32_t stage = stage_of(chunk);
    const Tile<kFeatures> phi_k{kMap ? base + Memory::kPhiK : stage + Memory::kK};
    const int first = chunk * kChunk, valid = min(kChunk, shape.length - first);
    const int low = row0 + lane / 4, high = low + 8;
    wait_copies<1>();
    __syncwarp();
    Features phi_q;
    make_features(stage, phi_k, low < valid, high < valid, phi_q);
    __syncthreads();

    int last_start = 0;  // relative to the chunk: where the document of its last token begins
    CausalMask mask{-1, -1};
    if (starts != nullptr) {
      last_start = starts[first + valid - 1] - first;
      mask = {starts[min(first + low, shape.length - 1)] - first,
              starts[min(first + high, shape.length - 1)] - first};
    }
    if constexpr (!kSumsOnly) {
      save_state(chunk);
      write_outputs(stage, phi_k, phi_q, mask, first, valid);
    }
    add_chunk(phi_k, Tile<kHead>{stage + Memory::kV}, last_start);
    __syncthreads();
    if (chunk + 1 < chunk_end) publish_state();
    copy_chunk(chunk + 2);
  }

  /// Epilogue: the segment's sums, or the state behind the last token.
  __device__ __forceinline__ void finish() {
    if constexpr (kSumsOnly) {
      float* const sums = a.sums + (int64_t{item} * a.plan.segments + segment) * a.plan.sums_floats;
      write_state(sums, sums + features * kHead);
    } else if (a.final_s != nullptr && segment + 1 == a.plan.segments &&
               head % (shape.query_heads / shape.state_heads) == 0) {
      const int64_t state = int64_t{batch} * shape.state_heads + state_head;
      write_state(a.final_s + state * features * kHead, a.final_z + state * features);
    }
  }

 private:
  static constexpr int kWarps = kChunk / 16, kInput = Memory::kInput, kSteps = kFeatures / 16;
  using Values = float[kHead / 8][4];

  /// Where a chunk's inputs lie: two chunks are on their way or in use at a time.
  __device__ __forceinline__ uint32_t stage_of(int chunk) const {
    return base + ((chunk - chunk_begin) % Memory::kStages) * Memory::kStage;
  }

  /// Begins the load of the warp's rows of a chunk, if there is one.
  __device__ __forceinline__ void copy_chunk(int chunk) const {
    if (chunk < chunk_end) {
      const uint32_t stage = stage_of(chunk);
      const int64_t first = int64_t{chunk} * kChunk;
      const int valid = min(kChunk, shape.length - static_cast<int>(first));
      const auto copy = [&](auto tile, const bf16* from, const View& view, int units) {
        copy_rows_async(
            tile, from + first * view.token_stride, view.token_stride, row0, valid, units, lane);
      };
      if constexpr (!kSumsOnly) copy(Tile<kInput>{stage + Memory::kQ}, q, a.q, input_units);
      copy(Tile<kInput>{stage + Memory::kK}, k, a.k, input_units);
      copy(Tile<kHead>{stage + Memory::kV}, v, a.v, kHead / 8);
    }
    commit_copies();
  }

  /// Features of the warp's rows; those of the keys for everybody.
  __device__ __forceinline__ void make_features(uint32_t stage,
                                                const Tile<kFeatures>& phi_k,
                                                bool low_exists,
                                                bool high_exists,
                                                Features& phi_q) const {
    const Tile<kInput> q_tile{stage + Memory::kQ}, k_tile{stage + Memory::kK};
    if constexpr (kMap) {
      float y[kFeatures / 8][4];
      Features phi;
      project<kHead, kFeatures>(y, k_tile, weight, row0, lane);
      activate<kFeatures>(phi, y, bias, 1.0F, low_exists, high_exists, lane);
      store_rows<kFeatures>(phi_k, row0, phi, lane);
      if constexpr (!kSumsOnly) {
        project<kHead, kFeatures>(y, q_tile, weight, row0, lane);
        activate<kFeatures>(phi_q, y, bias, a.rule.scale, true, true, lane);
      }
    } else if constexpr (!kSumsOnly) {
#pragma unroll
      for (int step = 0; step < kSteps; ++step) q_tile.load_a(phi_q[step], row0, 2 * step, lane);
    }
  }

  /// For the backward pass: the state before a chunk, as it lies in shared memory.
  __device__ __forceinline__ void save_state(int chunk) const {
    if (a.states != nullptr && (chunk > 0 || a.initial_s != nullptr)) {
      unsigned char* const record =
          a.states + (int64_t{item} * a.plan.chunks + chunk) * a.plan.state_record_bytes;
      for (int i = threadIdx.x; i < (4 * kFeatures * kHead + 4 * kFeatures) / 16; i += kChunk * 2) {
        reinterpret_cast<uint4*>(record)[i] = load_shared_16(base + Memory::kState + 16 * i);
      }
    }
  }

  /// o of the warp's rows.
  __device__ __forceinline__ void write_outputs(uint32_t stage,
                                                const Tile<kFeatures>& phi_k,
                                                const Features& phi_q,
                                                const CausalMask& mask,
                                                int first,
                                                int valid) const {
    Values num = {};
    // Column 0: sum of the block products and of phi(q) hi(z); column 1: phi(q) lo(z). As columns
    // of a product they cost no shuffles.
    float den[4] = {};
    multiply_state(phi_q, mask, num, den);
    for (int j = 0; j <= block; ++j)
      multiply_block(j, phi_k, Tile<kHead>{stage + Memory::kV}, phi_q, mask, num, den);
    const float den_low = __shfl_sync(0xffffffffu, den[0] + den[1], lane & ~3);
    const float den_high = __shfl_sync(0xffffffffu, den[2] + den[3], lane & ~3);
    // The own rows of q have served, if they are wide enough.
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

  /// What comes from before the chunk: num = phi(q) S, den = phi(q) z. Rows whose document begins
  /// inside the chunk do not see it.
  __device__ __forceinline__ void multiply_state(const Features& phi_q,
                                                 const CausalMask& mask,
                                                 Values& num,
                                                 float (&den)[4]) const {
#pragma unroll
    for (int step = 0; step < kSteps; ++step) {
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
  }

  /// What 16 of the chunk's keys add: num += p v, den += sums of p's rows.
  __device__ __forceinline__ void multiply_block(int j,
                                                 const Tile<kFeatures>& phi_k,
                                                 const Tile<kHead>& v_tile,
                                                 const Features& phi_q,
                                                 const CausalMask& mask,
                                                 Values& num,
                                                 float (&den)[4]) const {
    float p[2][4] = {};
#pragma unroll
    for (int step = 0; step < kSteps; ++step) {
      uint32_t b[4];
      phi_k.load_b(b, j * 16, 2 * step, lane);
      mma(p[0], phi_q[step], b[0], b[1]);
      mma(p[1], phi_q[step], b[2], b[3]);
    }
    if (j == block || starts != nullptr) mask.clear_unseen(p, row0, j * 16, lane);
    uint32_t weights[4];
    pack_operand(weights, p);
    const uint32_t ones = ones_column(lane);
    mma(den, weights, ones, ones);
#pragma unroll
    for (int n = 0; n < kHead / 16; ++n) {
      uint32_t b[4];
      v_tile.load_b_transposed(b, j * 16, 2 * n, lane);
      mma(num[2 * n], weights, b[0], b[1]);
      mma(num[2 * n + 1], weights, b[2], b[3]);
    }
  }

  /// S += phi(k)^T v and z += phi(k), of the chunk's last document alone if it began in the chunk.
  __device__ __forceinline__ void add_chunk(const Tile<kFeatures>& phi_k,
                                            const Tile<kHead>& v_tile,
                                            int last_start) {
    if (starts != nullptr && last_start >= 0) {
      s.clear();
      z.clear();
    }
    s.template add<kChunk>(phi_k, v_tile, last_start, kChunk, lane);
    if (block == 0) {
      const uint32_t ones = ones_column(lane);
      z.template add<kChunk>(phi_k, last_start, kChunk, lane, [ones](int) { return ones; });
    }
  }

  /// Hands S and z to all warps, rounded to hi + lo.
  __device__ __forceinline__ void publish_state() {
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
  }

  __device__ __forceinline__ void add_state(const float* from_s, const float* from_z) {
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
  }
  __device__ __forceinline__ void write_state(float* to_s, float* to_z) {
    s.for_each_pair(lane, [&](int row, int column, const float* pair) {
      if (row < features)
        *reinterpret_cast<float2*>(to_s + row * kHead + column) = {pair[0], pair[1]};
    });
    if (block == 0)
      z.for_each(lane, [&](int feature, float sum) {
        if (feature < features) to_z[feature] = sum;
      });
  }

  const CausalArguments& a;
  unsigned char* const memory;
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
  const int lane = threadIdx.x & 31;
  const int block = row_block_of<kWarps>(threadIdx.x >> 5), row0 = block * 16;
  const int features = shape.feature_size;

 public:
  const int chunk_begin = segment * a.plan.chunks_per_segment;
  const int chunk_end = min(chunk_begin + a.plan.chunks_per_segment, a.plan.chunks);

 private:
  const int input_units = kMap ? kHead / 8 : (features + 7) / 8;
  const bf16* const q = kSumsOnly ? nullptr : rows_of(a.q, batch, head);
  const bf16* const k = rows_of(a.k, batch, state_head / (shape.state_heads / shape.key_heads));
  const bf16* const v = rows_of(a.v, batch, state_head / (shape.state_heads / shape.value_heads));
  const int* const starts =
      a.document_start == nullptr ? nullptr : a.document_start + int64_t{batch} * shape.length;

  SharedProduct<kFeatures, kHead, kWarps> s;
  WeightedColumnSums<kFeatures> z;  // of the warp with block 0, which has the least other work
};

/// One block of threads walks one segment of one sequence and query head, chunk by chunk. With
/// `kSumsOnly` it writes the segment's own sums of phi(k) v^T and phi(k) and nothing else.
template <int kHead, int kFeatures, int kChunk, bool kMap, bool kSumsOnly>
__global__ void __launch_bounds__(kChunk * 2, 1)
    causal_forward_kernel(const __grid_constant__ CausalArguments a) {
  extern __shared__ __align__(128) unsigned char memory[];
  ForwardBlock<kHead, kFeatures, kChunk, kMap, kSumsOnly> block(a, memory);
  block.start();
  for (int chunk = block.chunk_begin; chunk < block.chunk_end; ++chunk) block.run(chunk);
  block.finish();
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
