#pragma once

#include "model/kernels/cuda/sm90/causal_relay_sm90.cuh"
#include "model/kernels/cuda/sm90/causal_rows_sm90.cuh"

namespace t2r::kernels::cuda::sm90 {

/// Shared memory of the forward kernel; tiles begin at multiples of 1,024 bytes, where the
/// swizzle's pattern does.
template <int kFeatures, bool kMap>
struct ForwardMemory {
  static constexpr int kInputTile = kWalkTokens * (kMap ? kHead : kFeatures) * 2,
                       kTile = kWalkTokens * kHead * 2;
  static constexpr int kQ = 0;  // later o
  static constexpr int kK = kQ + kTile;
  static constexpr int kV = kK + kInputTile;
  static constexpr int kRecord = kV + kTile;  // the state before the chunk
  static constexpr int kStage =
      kRecord + round_up(kRecordBytes<kHead, kFeatures> + 4 * kHead, 1024);
  static constexpr int kPhiTile = kMap ? kWalkTokens * kFeatures * 2 : 0;
  // A multiple of the walkers: a stage is always the same walker's, so none can be a round ahead of
  // its barriers.
  static constexpr int kStages = 2 * kWalkers<kFeatures>;
  static constexpr int kWeight = kStages * kStage;
  static constexpr int kPhiK = kWeight + (kMap ? kFeatures * kHead * 2 : 0);  // of each walker
  static constexpr int kRelay = kPhiK + kWalkers<kFeatures> * kPhiTile;
  static constexpr int kBias = kRelay + Relay<kFeatures>::kBytes;
  static constexpr int kLoaded =
      kBias + 4 * kFeatures;  // barriers: of every stage, twice; of the relay
  static constexpr int kDone = kLoaded + 8 * kStages;
  static constexpr int kPassed = kDone + 8 * kStages;
  static constexpr int kMapReady = kPassed + 8 * Relay<kFeatures>::kBarriers;  // W and b
  static constexpr int kBytes = kMapReady + 8 + 1024;  // the base is rounded up
  static_assert(kBytes <= 227 * 1024);
};

/// A block of threads of causal_forward_kernel: its place in the tensors and in shared memory. A
/// turn is a chunk of 64 tokens, and turn % kStages its stage.
template <int kFeatures, bool kMap, bool kSumsOnly>
struct ForwardBlock {
  using Memory = ForwardMemory<kFeatures, kMap>;

  __device__ __forceinline__ ForwardBlock(const CausalArguments& arguments,
                                          const TensorMaps& tensor_maps,
                                          unsigned char* shared)
      : a(arguments), maps(tensor_maps), memory(shared) {}

  __device__ __forceinline__ int stage_of(int turn) const {
    return turn % Memory::kStages * Memory::kStage;
  }
  __device__ __forceinline__ int token_of(int turn) const {
    return (chunk_begin + turn) * kWalkTokens;
  }
  // Barriers of a turn's stage, and the parity of the phase that ends when they are passed.
  __device__ __forceinline__ uint32_t loaded(int turn) const {
    return base + Memory::kLoaded + 8 * (turn % Memory::kStages);
  }
  __device__ __forceinline__ uint32_t done(int turn) const {
    return base + Memory::kDone + 8 * (turn % Memory::kStages);
  }
  __device__ __forceinline__ static int parity(int turn) { return turn / Memory::kStages & 1; }

  /// By one thread, before everything else.
  __device__ __forceinline__ void init_barriers() const {
    for (int stage = 0; stage < Memory::kStages; ++stage) {
      init_barrier(base + Memory::kLoaded + 8 * stage);
      init_barrier(base + Memory::kDone + 8 * stage, 4);
    }
    for (int i = 0; i < Relay<kFeatures>::kBarriers; ++i)
      init_barrier(base + Memory::kPassed + 8 * i);
    init_barrier(base + Memory::kMapReady, 2);
    publish_barriers();
  }

  const CausalArguments& a;
  const TensorMaps& maps;
  unsigned char* const memory;
  const uint32_t base = shared_address(memory);
  float* const bias = reinterpret_cast<float*>(memory + Memory::kBias);
  const Tile<kHead> weight{base + Memory::kWeight};

  const Shape& shape = a.shape;
  const int item = blockIdx.x, segment = blockIdx.y;
  const int batch = item / shape.query_heads, head = item % shape.query_heads;
  const int state_head = head / (shape.query_heads / shape.state_heads);
  const int tid = threadIdx.x, lane = tid & 31,
            warp = __shfl_sync(0xffffffffu, tid >> 5, 0);  // uniform, and known to be
  const int walker = warp >> 2, row0 = (warp & 3) * 16, low = row0 + lane / 4, high = low + 8;
  const int features = shape.feature_size;
  const int chunk_begin = segment * a.plan.chunks_per_segment;
  const int turns = min(a.plan.chunks_per_segment, a.plan.chunks - chunk_begin);
  const int key_head = state_head / (shape.state_heads / shape.key_heads);
  const int value_head = state_head / (shape.state_heads / shape.value_heads);
};

}  // namespace t2r::kernels::cuda::sm90
