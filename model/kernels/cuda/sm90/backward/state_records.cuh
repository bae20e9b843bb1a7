#pragma once

#include "model/kernels/cuda/sm90/backward/block.cuh"

namespace t2r::kernels::cuda::sm90 {

/// The producer's hand on the states that the forward has saved, one before every chunk.
template <class Block>
class StateRecords {
 public:
  __device__ __forceinline__ explicit StateRecords(const Block& owner) : block(owner) {}

  /// Is there one? Before the first token, only a given one.
  __device__ __forceinline__ bool exists(int turn) const {
    return turn < block.turns &&
           (turn + 1 < block.turns || block.chunk_begin > 0 || block.a.initial_s != nullptr);
  }
  /// By one thread.
  __device__ __forceinline__ void load(int turn) const {
    expect_bytes(barrier_of(turn), Block::kRecord);
    load_bytes(block.base + block.state_at(turn), at(turn), Block::kRecord, barrier_of(turn));
  }
  /// Zeros instead; by a warp.
  __device__ __forceinline__ void clear(int turn) const {
    for (int i = block.lane; i < Block::kRecord / 16; i += 32)
      store_shared_16(block.base + block.state_at(turn) + 16 * i, uint4{0, 0, 0, 0});
    make_visible_to_wgmma();
    arrive(barrier_of(turn), block.lane);
  }
  /// To the L2 cache; by one thread.
  __device__ __forceinline__ void prefetch(int turn) const {
    prefetch_bytes(at(turn), Block::kRecord);
  }

 private:
  __device__ __forceinline__ const unsigned char* at(int turn) const {
    return block.a.states +
           (int64_t{block.item} * block.a.plan.chunks + block.chunk_end - 1 - turn) *
               block.a.plan.state_record_bytes;
  }
  __device__ __forceinline__ uint32_t barrier_of(int turn) const {
    const Pipeline states = Block::Pipelines::kState;
    return block.base + states.full(turn);
  }

  const Block& block;
};

}  // namespace t2r::kernels::cuda::sm90
