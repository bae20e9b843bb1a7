#pragma once

// Symbols: kernel.cuh; what the pipelines carry: memory.cuh.

#include "model/kernels/cuda/sm90/backward/state_records.cuh"

namespace t2r::kernels::cuda::sm90 {

/// The fourth warpgroup of head size 64, a warp for each tensor: a tile is loaded, served, is
/// overwritten by a gradient, stored, and loaded again. That of the keys brings the states too. One
/// loop serves all four, since code comes from device memory at every launch.
template <int kFeatures, bool kMap, BackwardPart kPart>
class TileProducer<64, kFeatures, kMap, kPart> {
 public:
  using Block = BackwardBlock<64, kFeatures, kMap, kPart>;
  __device__ __forceinline__ explicit TileProducer(const Block& owner)
      : block(owner), records(owner) {}

  /// Nothing is loaded before the warpgroups part.
  __device__ __forceinline__ void begin() const {}

  /// What is loaded next is brought to the L2 cache before.
  __device__ __forceinline__ void run() const {
    give_registers<24>();
    const Duty duty = duty_of(block.warp & 3);
    const bool brings_states = kRowPart && (block.warp & 3) == 1;
    const int lane = block.lane;
    if (lane == 0) prefetch_map(*duty.from);
    wait_for_earlier_kernels();
    if (lane == 0) {
      if (kMap && (block.warp & 3) == 0) load_weight();
      for (int turn = 0; turn < duty.stages; ++turn) load(duty, turn, turn);
    }
    __syncwarp();
    if (brings_states) {
      bring_state(0);
      bring_state(1);
    }
    for (int turn = 0, stage = 0, phase = 0; turn < block.turns; ++turn) {
      if (lane == 0 && turn + duty.stages < block.turns)
        prefetch_tile(*duty.from, 0, block.token_of(turn + duty.stages), duty.head, block.batch);
      if (brings_states) {
        block.wait_released(Pipelines::kState, turn);
        bring_state(turn + 2);
      }
      wait_barrier(duty.empty + 8 * stage, phase);
      if (lane == 0) {
        if (duty.gradient != nullptr) {
          store_tile(*duty.gradient,
                     duty.tiles + stage * duty.bytes,
                     0,
                     block.token_of(turn),
                     block.head,
                     block.batch);
          commit_stores();
          wait_stores_read();
        }
        load(duty, turn + duty.stages, stage);
      }
      __syncwarp();
      if (++stage == duty.stages) {
        stage = 0;
        phase ^= 1;
      }
    }
  }

 private:
  using Memory = typename Block::Memory;
  using Pipelines = typename Block::Pipelines;
  static constexpr bool kRowPart = Block::kRowPart, kColumnPart = Block::kColumnPart;

  /// A warp's tensor: its tiles (in shared memory, with their barriers) and what is stored from
  /// them, or null.
  struct Duty {
    const CUtensorMap *from, *gradient;
    int head, stages, bytes;
    uint32_t tiles, full, empty;
  };

  __device__ __forceinline__ Duty duty_of(int mover) const {
    const auto own = [&](auto of_q, auto of_k, auto of_v, auto of_grad_o) {
      return mover == 0 ? of_q : mover == 1 ? of_k : mover == 2 ? of_v : of_grad_o;
    };
    const TensorMaps& maps = block.maps;
    const CUtensorMap* const none = nullptr;
    Duty duty;
    duty.from = own(&maps.q, &maps.k, &maps.v, &maps.grad_o);
    duty.gradient = own(kRowPart ? &maps.grad_q : none,
                        none,
                        kColumnPart ? &maps.grad_v : none,
                        kColumnPart ? &maps.grad_k : none);
    duty.head = own(block.head, block.key_head, block.value_head, block.head);
    duty.stages = mover < 2 ? Memory::kInputStages : Memory::kValueStages;
    duty.bytes = mover < 2 ? Memory::kInputTile : Memory::kTile;
    duty.tiles = block.base + own(Memory::kQ, Memory::kK, Memory::kV, Memory::kGradO);
    duty.full = block.base + own(Pipelines::kQ.full(),
                                 Pipelines::kK.full(),
                                 Pipelines::kV.full(),
                                 Pipelines::kGradO.full());
    duty.empty = block.base + own(Pipelines::kQ.empty(),
                                  Pipelines::kK.empty(),
                                  Pipelines::kV.empty(),
                                  Pipelines::kGradO.empty());
    return duty;
  }

  /// By one thread.
  __device__ __forceinline__ void load(const Duty& duty, int turn, int stage) const {
    if (turn >= block.turns) return;
    expect_bytes(duty.full + 8 * stage, duty.bytes);
    load_tile(duty.tiles + stage * duty.bytes,
              *duty.from,
              duty.full + 8 * stage,
              0,
              block.token_of(turn),
              duty.head,
              block.batch);
  }
  __device__ __forceinline__ void load_weight() const {
    const uint32_t barrier = block.base + Pipelines::kMapReady.full();
    expect_bytes(barrier, Memory::kWeightTile);
    load_tile(block.weight().base, block.maps.weight, barrier, 0, 0, block.state_head, 0);
  }

  /// By a warp.
  __device__ __forceinline__ void bring_state(int turn) const {
    if (turn >= block.turns) return;
    if (!records.exists(turn)) {
      records.clear(turn);
    } else if (block.lane == 0) {
      records.load(turn);
    }
  }

  const Block& block;
  const StateRecords<Block> records;
};

}  // namespace t2r::kernels::cuda::sm90
