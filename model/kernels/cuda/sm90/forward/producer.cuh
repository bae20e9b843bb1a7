#pragma once

#include "model/kernels/cuda/sm90/forward/block.cuh"

namespace t2r::kernels::cuda::sm90 {

/// Producer: one thread, which loads tiles and stores outputs and state records.
template <int kFeatures, bool kMap, bool kSumsOnly>
class ForwardProducer {
 public:
  using Block = ForwardBlock<kFeatures, kMap, kSumsOnly>;
  __device__ __forceinline__ explicit ForwardProducer(const Block& owner) : block(owner) {}

  __device__ __forceinline__ void run() const {
    const TensorMaps& maps = block.maps;
    prefetch_map(maps.k);
    prefetch_map(maps.v);
    if constexpr (!kSumsOnly) prefetch_map(maps.q);
    wait_for_earlier_kernels();
    if constexpr (kMap) {
      const uint32_t ready = block.base + Memory::kMapReady;
      expect_bytes(ready, kFeatures * kHead * 2);
      load_tile(block.weight.base, maps.weight, ready, 0, 0, block.state_head, 0);
    }
    for (int turn = 0; turn < Memory::kStages; ++turn) load(turn);
    for (int turn = 0; turn < block.turns; ++turn) {
      wait_barrier(block.done(turn), block.parity(turn));
      if constexpr (!kSumsOnly) store(turn);
      load(turn + Memory::kStages);
    }
  }

 private:
  using Memory = typename Block::Memory;

  __device__ __forceinline__ void load(int turn) const {
    if (turn >= block.turns) return;
    const TensorMaps& maps = block.maps;
    const uint32_t stage = block.base + block.stage_of(turn), barrier = block.loaded(turn);
    const int token = block.token_of(turn);
    expect_bytes(barrier, Memory::kTile + (kSumsOnly ? 1 : 2) * Memory::kInputTile);
    load_tile(stage + Memory::kK, maps.k, barrier, 0, token, block.key_head, block.batch);
    if constexpr (!kSumsOnly)
      load_tile(stage + Memory::kQ, maps.q, barrier, 0, token, block.head, block.batch);
    load_tile(stage + Memory::kV, maps.v, barrier, 0, token, block.value_head, block.batch);
  }

  /// o and, for the backward pass, the state before the chunk; they have left when it returns.
  __device__ __forceinline__ void store(int turn) const {
    const CausalArguments& a = block.a;
    const uint32_t stage = block.base + block.stage_of(turn);
    const int chunk = block.chunk_begin + turn;
    store_tile(block.maps.o, stage + Memory::kQ, 0, block.token_of(turn), block.head, block.batch);
    if (a.states != nullptr && (chunk > 0 || a.initial_s != nullptr)) {
      store_bytes(
          a.states + (int64_t{block.item} * a.plan.chunks + chunk) * a.plan.state_record_bytes,
          stage + Memory::kRecord,
          kRecordBytes<kHead, kFeatures>);
    }
    commit_stores();
    wait_stores_read();
  }

  const Block& block;
};

}  // namespace t2r::kernels::cuda::sm90
