#pragma once

#include "model/kernels/cuda/sm90/backward/memory.cuh"
#include "model/kernels/cuda/sm90/causal_rows_sm90.cuh"

namespace t2r::kernels::cuda::sm90 {

/// A head's rows of a chunk in shared memory: a tile for each 64 of the head's columns.
struct HeadTiles {
  uint32_t base;
  int stride;
  __device__ __forceinline__ Tile<kHead> operator[](int half) const {
    return {base + half * stride};
  }
};

/// d = a b^T over the columns of a head; b may be W.
template <int kHeadSize, int kTiles>
__device__ __forceinline__ void multiply_heads(float (&d)[kTiles][4],
                                               const HeadTiles& a,
                                               const HeadTiles& b) {
#pragma unroll
  for (int half = 0; half < kHeadSize / 64; ++half)
#pragma unroll
    for (int step = 0; step < 4; ++step)
      product<Major::kK, Major::kK>(d,
                                    operand<Major::kK>(a[half], 0, step),
                                    operand<Major::kK>(b[half], 0, step),
                                    half + step > 0);
}

/// Where the launch for the rows leaves denominators and e for the launch for the columns; null
/// where one launch does both.
struct SavedRows {
  float *denominators, *es;
};

/// A block of threads of causal_backward_kernel: its place in the tensors, where a turn's things
/// lie in shared memory, and how its roles wait for each other. A turn is a chunk of 64 tokens;
/// turn 0 is the segment's last chunk.
template <int kHeadSize, int kFeatures, bool kMap, BackwardPart kPart>
class BackwardBlock {
 public:
  using Memory = BackwardMemory<kHeadSize, kFeatures, kMap>;
  using Pipelines = typename Memory::Pipelines;
  static constexpr int kSteps = kFeatures / 16;
  static constexpr int kRecord = kRecordBytes<kHeadSize, kFeatures>;
  static constexpr bool kRowPart = kPart != BackwardPart::kColumns,
                        kColumnPart = kPart != BackwardPart::kRows;

  __device__ __forceinline__ BackwardBlock(const CausalArguments& arguments,
                                           const TensorMaps& tensor_maps,
                                           unsigned char* shared)
      : a(arguments), maps(tensor_maps), memory(shared) {}

  /// Of this thread's warp.
  __device__ __forceinline__ int warpgroup() const { return warp >> 2; }

  /// By one thread, before everything else.
  __device__ __forceinline__ void init_barriers() const {
    // Warps of the rows and of the columns, or of the only ones.
    constexpr int kBoth = kPart == BackwardPart::kAll ? 8 : 4;
    const auto init = [&](int at, int stages, int arrivals) {
      for (int i = 0; i < stages; ++i) init_barrier(base + at + 8 * i, arrivals);
    };
    const auto init_pipeline = [&](Pipeline pipeline, int to_fill, int to_empty) {
      init(pipeline.full(), pipeline.stages, to_fill);
      init(pipeline.empty(), pipeline.stages, to_empty);
    };
    init_pipeline(Pipelines::kQ, 1, 4);
    init_pipeline(Pipelines::kK, 1, kMap ? 4 : kBoth);
    init_pipeline(Pipelines::kV, 1, 4);
    init_pipeline(Pipelines::kGradO, 1, 4);
    init_pipeline(Pipelines::kState, 1, 4);
    init_pipeline(Pipelines::kRows, 4, kColumnPart ? 8 : 4);
    init_pipeline(Pipelines::kPhiK, 4, kHeadSize == 64 ? 4 : kBoth);
    init_pipeline(Pipelines::kGradState, 4, 4);
    init_pipeline(Pipelines::kGradYQ, 4, 4);
    init_pipeline(Pipelines::kGradYK, 4, 4);
    init(Pipelines::kGradOSummed.full(), Pipelines::kGradOSummed.stages, 4);
    if constexpr (kHeadSize == 64) init(Pipelines::kMapReady.full(), 1, 2);
    publish_barriers();
  }

  // Of a pipeline. This warp: waits until a turn's stage is full; until it may be filled for this
  // turn; until what was there for this turn has served; says that it is full; that this warp is
  // done with it.
  __device__ __forceinline__ void wait_full(Pipeline pipeline, int turn) const {
    wait_barrier(base + pipeline.full(turn), pipeline.parity(turn));
  }
  __device__ __forceinline__ void wait_empty(Pipeline pipeline, int turn) const {
    wait_barrier(base + pipeline.empty(turn), pipeline.parity(turn) ^ 1);
  }
  __device__ __forceinline__ void wait_released(Pipeline pipeline, int turn) const {
    wait_barrier(base + pipeline.empty(turn), pipeline.parity(turn));
  }
  __device__ __forceinline__ void publish(Pipeline pipeline, int turn) const {
    arrive(base + pipeline.full(turn), lane);
  }
  __device__ __forceinline__ void release(Pipeline pipeline, int turn) const {
    arrive(base + pipeline.empty(turn), lane);
  }

  // Where a turn's tiles lie: of q or k (`at` is Memory::kQ or kK), features if there is no map;
  // of v or d o (Memory::kV, kGradO).
  __device__ __forceinline__ uint32_t input_at(int turn, int at) const {
    return base + at + stage_of(Memory::kInputStages, turn) * Memory::kInputStride;
  }
  __device__ __forceinline__ uint32_t value_at(int turn, int at) const {
    return base + at + stage_of(Memory::kValueStages, turn) * Memory::kValueStride;
  }
  __device__ __forceinline__ HeadTiles input_of(int turn, int at) const {
    return {input_at(turn, at), Memory::kTile};
  }
  __device__ __forceinline__ HeadTiles value_of(int turn, int at) const {
    return {value_at(turn, at), Memory::kTile};
  }
  __device__ __forceinline__ HeadTiles weight() const {
    return {base + Memory::kWeight, Memory::kWeightTile};
  }

  // Where what passes between roles lies.
  __device__ __forceinline__ Tile<kFeatures> phi_k_of(int turn) const {
    return {kMap ? base + Memory::kPhiK + stage_of(Memory::kPhiKStages, turn) * Memory::kMapTile
                 : input_at(turn, Memory::kK)};
  }
  __device__ __forceinline__ Tile<kFeatures> scaled_phi_q_of(int turn) const {
    return {base + Memory::kScaledPhiQ + stage_of(Memory::kStages, turn) * Memory::kFeatureTile};
  }
  __device__ __forceinline__ float* e_of(int turn) const {
    return reinterpret_cast<float*>(memory + Memory::kE) +
           stage_of(Memory::kStages, turn) * kWalkTokens;
  }
  __device__ __forceinline__ int state_at(int turn) const {
    return Memory::kState + stage_of(Memory::kStages, turn) * Memory::kStateStride;
  }
  __device__ __forceinline__ const float* z_of(int turn) const {
    return reinterpret_cast<const float*>(memory + state_at(turn) + kRecordZ<kHeadSize, kFeatures>);
  }
  __device__ __forceinline__ Tile<kFeatures> ds_hi_of(int turn) const {
    return {base + Memory::kGradState + stage_of(Memory::kStages, turn) * Memory::kGradStateStride};
  }
  __device__ __forceinline__ Tile<kFeatures> ds_lo_of(int turn) const {
    static_assert(kHeadSize == 64, "of head size 128 there are only high halves");
    return {ds_hi_of(turn).base + Memory::kGradStateStride / 2};
  }
  __device__ __forceinline__ float* dz_of(int turn) const {
    return reinterpret_cast<float*>(memory + Memory::kDz) +
           stage_of(Memory::kStages, turn) * Memory::kDzFloats;
  }

  // Where a turn lies in the tensors.
  __device__ __forceinline__ int token_of(int turn) const {
    return (chunk_end - 1 - turn) * kWalkTokens;
  }
  __device__ __forceinline__ int valid_of(int turn) const {
    return min(kWalkTokens, shape.length - token_of(turn));
  }

  __device__ __forceinline__ SavedRows saved_rows() const {
    float* const denominators =
        a.row_values == nullptr ? nullptr : a.row_values + int64_t{item} * 2 * shape.length;
    return {denominators, denominators + shape.length};
  }
  __device__ __forceinline__ RowValues row_values_of(const SavedRows& saved, int turn) const {
    return RowValues(
        saved.denominators, saved.es, token_of(turn), low, turn < turns ? shape.length : 0);
  }

  /// Hands R = phi(q) / denominator and e to columns and sums.
  __device__ __forceinline__ void publish_rows(int turn,
                                               const uint32_t (&phi_q)[kFeatures / 16][4],
                                               const RowTerms& terms) const {
    wait_empty(Pipelines::kRows, turn);
    store_scaled_rows<kFeatures>(
        scaled_phi_q_of(turn), row0, phi_q, terms.inverse.low, terms.inverse.high, lane);
    if ((lane & 3) == 0) {
      e_of(turn)[low] = terms.e.low;
      e_of(turn)[high] = terms.e.high;
    }
    make_visible_to_wgmma();
    publish(Pipelines::kRows, turn);
  }

  __device__ __forceinline__ static int stage_of(int stages, int turn) { return turn % stages; }

  const CausalArguments& a;
  const TensorMaps& maps;
  unsigned char* const memory;
  const uint32_t base = shared_address(memory);
  const Tile<kFeatures> grad_y_q{base + Memory::kGradYQ}, grad_y_k{base + Memory::kGradYK};
  float* const bias = reinterpret_cast<float*>(memory + Memory::kBias);

  const Shape& shape = a.shape;
  const int item = blockIdx.x, segment = blockIdx.y;
  const int batch = item / shape.query_heads, head = item % shape.query_heads;
  const int heads_per_state = shape.query_heads / shape.state_heads,
            state_head = head / heads_per_state;
  const int tid = threadIdx.x, lane = tid & 31,
            warp = __shfl_sync(0xffffffffu, tid >> 5, 0);  // uniform, and known to be
  // A lane's two rows of its warpgroup's 64, and the first of its warp's 16.
  const int row0 = (warp & 3) * 16, low = row0 + lane / 4, high = low + 8;
  const int features = shape.feature_size;
  const int chunk_begin = segment * a.plan.chunks_per_segment;
  const int chunk_end = min(chunk_begin + a.plan.chunks_per_segment, a.plan.chunks);
  const int turns = chunk_end - chunk_begin;
  const int key_head = state_head / (shape.state_heads / shape.key_heads);
  const int value_head = state_head / (shape.state_heads / shape.value_heads);
};

/// A block's roles: what a warpgroup does. Specialized for head sizes 64 and 128.
template <int kHeadSize, int kFeatures, bool kMap, BackwardPart kPart>
class RowsConsumer;
template <int kHeadSize, int kFeatures, bool kMap, BackwardPart kPart>
class ColumnsConsumer;
template <int kHeadSize, int kFeatures, bool kMap, BackwardPart kPart>
class SumsConsumer;
template <int kHeadSize, int kFeatures, bool kMap, BackwardPart kPart>
class TileProducer;

}  // namespace t2r::kernels::cuda::sm90
