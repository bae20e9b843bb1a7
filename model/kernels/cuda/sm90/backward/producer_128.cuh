#pragma once

// Symbols: kernel.cuh; what the pipelines carry: memory.cuh.

#include "model/kernels/cuda/sm90/backward/state_records.cuh"

namespace t2r::kernels::cuda::sm90 {

/// The fourth warpgroup of head size 128, a warp for each tensor: a tile is loaded, served, is
/// overwritten by a gradient, stored, and loaded again. The first warp brings the states too.
template <int kFeatures, bool kMap, BackwardPart kPart>
class TileProducer<128, kFeatures, kMap, kPart> {
 public:
  using Block = BackwardBlock<128, kFeatures, kMap, kPart>;
  __device__ __forceinline__ explicit TileProducer(const Block& owner)
      : block(owner), records(owner) {}

  /// By the whole block, before its warpgroups part: the first loads, and W and b.
  __device__ __forceinline__ void begin() const {
    wait_for_earlier_kernels();
    if (block.tid == 0) {
      for (int turn = 0; turn < 2; ++turn) {
        load_k(turn);
        load_q(turn);
        load_v(turn);
        load_grad_o(turn);
        if (kRowPart && turn == 0 && records.exists(0)) records.load(0);
      }
    }
    if constexpr (kMap) {
      copy_weight_async<128, kFeatures, kBackwardThreads>(
          [&](int row, int unit) { return block.weight()[unit / 8].at(row, unit % 8); },
          block.a.weight,
          block.state_head,
          block.features);
      load_bias<kFeatures, kBackwardThreads>(
          block.bias, block.a.bias, block.state_head, block.features);
      commit_copies();
      wait_copies<0>();
      make_visible_to_wgmma();
    }
  }

  /// What is loaded next is brought to the L2 cache before.
  __device__ __forceinline__ void run() const {
    give_registers<24>();
    const int mover = block.warp % 4;
    for (int turn = 0; turn < block.turns; ++turn) {
      if (mover == 0) {
        serve_q(turn);
      } else if (mover == 1) {
        serve_k(turn);
      } else if (mover == 2) {
        serve_v(turn);
      } else {
        serve_grad_o(turn);
      }
      __syncwarp();
    }
  }

 private:
  using Memory = typename Block::Memory;
  using Pipelines = typename Block::Pipelines;
  static constexpr bool kRowPart = Block::kRowPart, kColumnPart = Block::kColumnPart;
  static constexpr int kInputTiles = Memory::kInputTiles;

  // Each by a warp: a turn's tiles have served, the next but one's take their place.
  __device__ __forceinline__ void serve_q(int turn) const {
    const bool first_lane = block.lane == 0;
    if constexpr (kRowPart) {
      if (first_lane && records.exists(turn + 1)) records.prefetch(turn + 1);
    }
    if (first_lane) prefetch(block.maps.q, kInputTiles, turn + 2, block.head);
    if constexpr (kRowPart) {
      if (turn == 0 && !records.exists(0)) records.clear(0);
      block.wait_released(Pipelines::kState, turn);
      if (turn + 1 < block.turns) {
        if (!records.exists(turn + 1)) {
          records.clear(turn + 1);
        } else if (first_lane) {
          records.load(turn + 1);
        }
      }
    }
    block.wait_released(Pipelines::kQ, turn);
    if (first_lane) {
      if constexpr (kRowPart)
        store(block.maps.grad_q, kInputTiles, Memory::kInputTile, Memory::kQ, turn);
      load_q(turn + 2);
    }
  }
  __device__ __forceinline__ void serve_k(int turn) const {
    if (block.lane == 0) prefetch(block.maps.k, kInputTiles, turn + 2, block.key_head);
    block.wait_released(Pipelines::kK, turn);
    if (block.lane == 0) load_k(turn + 2);
  }
  __device__ __forceinline__ void serve_v(int turn) const {
    if (block.lane == 0) prefetch(block.maps.v, 2, turn + 2, block.value_head);
    block.wait_released(Pipelines::kV, turn);
    if (block.lane == 0) {
      if constexpr (kColumnPart) store(block.maps.grad_v, 2, Memory::kTile, Memory::kV, turn);
      load_v(turn + 2);
    }
  }
  __device__ __forceinline__ void serve_grad_o(int turn) const {
    if (block.lane == 0) prefetch(block.maps.grad_o, 2, turn + 2, block.head);
    block.wait_released(Pipelines::kGradO, turn);
    if (block.lane == 0) {
      if constexpr (kColumnPart)
        store(block.maps.grad_k,
              kInputTiles,
              kMap ? Memory::kTile : Memory::kInputTile,
              Memory::kGradO,
              turn);
      load_grad_o(turn + 2);
    }
  }

  // Each by one thread.
  __device__ __forceinline__ void load_q(int turn) const {
    load_input(block.maps.q, Memory::kQ, Pipelines::kQ, turn, block.head);
  }
  __device__ __forceinline__ void load_k(int turn) const {
    load_input(block.maps.k, Memory::kK, Pipelines::kK, turn, block.key_head);
  }
  __device__ __forceinline__ void load_v(int turn) const {
    load_value(block.maps.v, Memory::kV, Pipelines::kV, turn, block.value_head);
  }
  __device__ __forceinline__ void load_grad_o(int turn) const {
    load_value(block.maps.grad_o, Memory::kGradO, Pipelines::kGradO, turn, block.head);
  }
  __device__ __forceinline__ void load_input(
      const CUtensorMap& map, int at, Pipeline pipeline, int turn, int head) const {
    load<kInputTiles, Memory::kInputTile>(map, block.input_at(turn, at), pipeline, turn, head);
  }
  __device__ __forceinline__ void load_value(
      const CUtensorMap& map, int at, Pipeline pipeline, int turn, int head) const {
    load<2, Memory::kTile>(map, block.value_at(turn, at), pipeline, turn, head);
  }
  template <int kTiles, int kTileBytes>
  __device__ __forceinline__ void load(
      const CUtensorMap& map, uint32_t to, Pipeline pipeline, int turn, int head) const {
    if (turn >= block.turns) return;
    const uint32_t barrier = block.base + pipeline.full(turn);
    expect_bytes(barrier, kTiles * kTileBytes);
    for (int i = 0; i < kTiles; ++i)
      load_tile(to + i * kTileBytes, map, barrier, 64 * i, block.token_of(turn), head, block.batch);
  }
  __device__ __forceinline__ void prefetch(const CUtensorMap& map,
                                           int tiles,
                                           int turn,
                                           int head) const {
    if (turn >= block.turns) return;
    for (int i = 0; i < tiles; ++i)
      prefetch_tile(map, 64 * i, block.token_of(turn), head, block.batch);
  }
  __device__ __forceinline__ void store(
      const CUtensorMap& map, int tiles, int bytes, int at, int turn) const {
    for (int i = 0; i < tiles; ++i)
      store_tile(map,
                 block.input_at(turn, at) + i * bytes,
                 64 * i,
                 block.token_of(turn),
                 block.head,
                 block.batch);
    commit_stores();
    wait_stores_read();
  }

  const Block& block;
  const StateRecords<Block> records;
};

}  // namespace t2r::kernels::cuda::sm90
