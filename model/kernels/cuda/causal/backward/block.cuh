#pragma once

#include "model/kernels/cuda/causal/causal_common.cuh"
#include "model/kernels/cuda/causal/causal_memory.h"

namespace t2r::kernels::cuda {

/// Something of each of a lane's two rows, `low` and `high`.
struct RowPair {
  float low = 0.0F, high = 0.0F;
};

/// A chunk on its way through the block: its tokens, and what document boundaries hide from its
/// rows.
struct BackwardChunk {
  int index, first, valid;  ///< first token; tokens that exist
  uint32_t stage;           ///< where its inputs lie in shared memory
  int last_start = 0;       ///< rows from here on reach beyond the chunk
  CausalMask mask{-1, -1};
};

/// A block of threads of causal_backward_kernel: its place in the tensors and in shared memory. A
/// warp has 16 rows of a chunk; a lane two of them, `low` and `high`.
template <int kHead, int kFeatures, int kChunk, bool kMap, int kStages, BackwardPart kPart>
class BackwardBlock {
 public:
  using Memory = BackwardMemory<kHead, kFeatures, kChunk, kMap, kStages>;
  using Features = uint32_t[kFeatures / 16][4];  ///< of a warp's rows, as operands
  static constexpr int kWarps = kChunk / 16, kInput = Memory::kInput, kSteps = kFeatures / 16,
                       kHeadSteps = kHead / 16, kThreads = kChunk * 2;
  static constexpr bool kHasMap = kMap, kRowPart = kPart != BackwardPart::kColumns,
                        kColumnPart = kPart != BackwardPart::kRows;

  __device__ __forceinline__ BackwardBlock(const CausalArguments& arguments, unsigned char* shared)
      : a(arguments), memory(shared) {}

  // Tiles of a chunk's inputs.
  __device__ __forceinline__ Tile<kInput> q_of(const BackwardChunk& chunk) const {
    return {chunk.stage + Memory::kQ};
  }
  __device__ __forceinline__ Tile<kInput> k_of(const BackwardChunk& chunk) const {
    return {chunk.stage + Memory::kK};
  }
  __device__ __forceinline__ Tile<kHead> v_of(const BackwardChunk& chunk) const {
    return {chunk.stage + Memory::kV};
  }
  __device__ __forceinline__ Tile<kHead> grad_o_of(const BackwardChunk& chunk) const {
    return {chunk.stage + Memory::kGradO};
  }
  __device__ __forceinline__ Tile<kFeatures> phi_k_of(const BackwardChunk& chunk) const {
    return {kMap ? base + Memory::kPhiK : chunk.stage + Memory::kK};
  }

  /// Begins the loads of W and b; by all threads.
  __device__ __forceinline__ void load_map() const {
    if constexpr (kMap) {
      copy_weight_async<kHead, kFeatures, kThreads>(
          [&](int row, int unit) { return weight.at(row, unit); }, a.weight, state_head, features);
      load_bias<kFeatures, kThreads>(bias, a.bias, state_head, features);
    }
  }
  /// Begins the load of the warp's rows of a chunk, if there is one.
  __device__ __forceinline__ void copy_chunk(int chunk) const {
    if (chunk >= chunk_begin) {
      const uint32_t stage = base + (chunk % kStages) * Memory::kStage;
      const int64_t first = int64_t{chunk} * kChunk;
      const int valid = min(kChunk, shape.length - static_cast<int>(first));
      const auto copy = [&](auto tile, const bf16* from, const View& view, int units) {
        copy_rows_async(
            tile, from + first * view.token_stride, view.token_stride, row0, valid, units, lane);
      };
      copy(Tile<kInput>{stage + Memory::kQ}, q, a.q, input_units);
      copy(Tile<kInput>{stage + Memory::kK}, k, a.k, input_units);
      copy(Tile<kHead>{stage + Memory::kV}, v, a.v, kHead / 8);
      copy(Tile<kHead>{stage + Memory::kGradO}, grad_o, a.grad_o, kHead / 8);
    }
    commit_copies();
  }
  /// Begins the load of the state before a chunk, or zeros; by all threads.
  __device__ __forceinline__ void copy_state(int chunk) const {
    if (kRowPart && chunk >= chunk_begin) {
      const bool exists = chunk > 0 || a.initial_s != nullptr;
      const unsigned char* const record =
          a.states + (int64_t{item} * a.plan.chunks + chunk) * a.plan.state_record_bytes;
      for (int i = tid; i < Memory::kRecord / 16; i += kThreads) {
        copy_async_16(base + Memory::kState + 16 * i, record + (exists ? 16 * i : 0), exists);
      }
    }
    commit_copies();
  }

  /// A chunk whose inputs have come.
  __device__ __forceinline__ BackwardChunk chunk_at(int index) const {
    BackwardChunk chunk;
    chunk.index = index;
    chunk.stage = base + (index % kStages) * Memory::kStage;
    chunk.first = index * kChunk;
    chunk.valid = min(kChunk, shape.length - chunk.first);
    if (starts != nullptr) {
      chunk.last_start = starts[chunk.first + chunk.valid - 1] - chunk.first;
      chunk.mask = {starts[min(chunk.first + low, shape.length - 1)] - chunk.first,
                    starts[min(chunk.first + high, shape.length - 1)] - chunk.first};
    }
    return chunk;
  }

  /// Features of the warp's rows; those of the keys also for everybody.
  __device__ __forceinline__ void make_features(const BackwardChunk& chunk,
                                                Features& phi_q,
                                                Features& own_phi_k) const {
    if constexpr (kMap) {
      const int valid = chunk.valid;
      float y[kFeatures / 8][4];
      project<kHead, kFeatures>(y, k_of(chunk), weight, row0, lane);
      activate<kFeatures>(own_phi_k, y, bias, 1.0F, low < valid, high < valid, lane);
      store_rows<kFeatures>(phi_k_of(chunk), row0, own_phi_k, lane);
      project<kHead, kFeatures>(y, q_of(chunk), weight, row0, lane);
      activate<kFeatures>(phi_q, y, bias, a.rule.scale, low < valid, high < valid, lane);
    } else {
#pragma unroll
      for (int step = 0; step < kSteps; ++step) {
        q_of(chunk).load_a(phi_q[step], row0, 2 * step, lane);
        k_of(chunk).load_a(own_phi_k[step], row0, 2 * step, lane);
      }
    }
  }

  /// d y of the warp's rows: dphi times `scale` where phi = relu(y) is on.
  __device__ __forceinline__ static void grad_map(Features& grad_y,
                                                  const Features& phi,
                                                  const float (&dphi)[kFeatures / 8][4],
                                                  const RowPair& scale) {
#pragma unroll
    for (int n = 0; n < kFeatures / 8; ++n) {
      const float2 phi_low = unpack(phi[n / 2][2 * (n & 1)]),
                   phi_high = unpack(phi[n / 2][2 * (n & 1) + 1]);
      grad_y[n / 2][2 * (n & 1)] = pack(phi_low.x > 0.0F ? dphi[n][0] * scale.low : 0.0F,
                                        phi_low.y > 0.0F ? dphi[n][1] * scale.low : 0.0F);
      grad_y[n / 2][2 * (n & 1) + 1] = pack(phi_high.x > 0.0F ? dphi[n][2] * scale.high : 0.0F,
                                            phi_high.y > 0.0F ? dphi[n][3] * scale.high : 0.0F);
    }
  }

  /// Writes the warp's rows of `tile` to a gradient.
  template <int kColumns>
  __device__ __forceinline__ void write_gradient(const View& gradient,
                                                 const Tile<kColumns>& tile,
                                                 const BackwardChunk& chunk,
                                                 int units) const {
    write_rows<kColumns>(
        mutable_rows_of(gradient, batch, head) + chunk.first * gradient.token_stride,
        gradient.token_stride,
        tile,
        row0,
        row0,
        chunk.valid,
        units,
        lane);
  }
  /// Writes d y W to the gradient of q or k.
  __device__ __forceinline__ void write_map_gradient(const View& gradient,
                                                     const Features& grad_y,
                                                     const BackwardChunk& chunk) const {
    float grad[kHead / 8][4] = {};
#pragma unroll
    for (int step = 0; step < kSteps; ++step)
#pragma unroll
      for (int n = 0; n < kHeadSteps; ++n) {
        uint32_t b[4];
        weight.load_b_transposed(b, step * 16, 2 * n, lane);
        mma(grad[2 * n], grad_y[step], b[0], b[1]);
        mma(grad[2 * n + 1], grad_y[step], b[2], b[3]);
      }
    stage_rows<kHead>(scratch, row0, grad, 1.0F, 1.0F, lane);
    write_gradient(gradient, scratch, chunk, kHead / 8);
  }

  const CausalArguments& a;
  unsigned char* const memory;
  const uint32_t base = shared_address(memory);
  const Tile<kHead> weight{base + Memory::kWeight};
  const Tile<kFeatures> scaled_phi_q{base + Memory::kScaledPhiQ}, grad_y_q{base + Memory::kGradYQ},
      grad_y_k{base + Memory::kPhiK};
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
  const int row_block = row_block_of<kWarps>(warp), row0 = row_block * 16;
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
  // What the launch for the rows leaves for the launch for the columns.
  float* const saved_denominator =
      a.row_values == nullptr ? nullptr : a.row_values + int64_t{item} * 2 * shape.length;
  float* const saved_e = saved_denominator + shape.length;
};

}  // namespace t2r::kernels::cuda
