#pragma once

#include "model/kernels/cuda/cross/cross_common.cuh"

namespace t2r::kernels::cuda {

/// A block of threads of the cross-attention kernels: its place in the tensors and in shared
/// memory, and its chunks on their way there, two at a time. A lane has rows `low` and `high` of a
/// chunk, of its warp's 16 from row0 on. kSecond is the byte of a stage where its second tile lies.
template <int kHead, int kFeatures, bool kMap, class SharedMemory>
class CrossWalk {
 protected:
  using Memory = SharedMemory;
  using Features = uint32_t[kFeatures / 16][4];  ///< of a warp's rows, as operands
  using Product = SharedProduct<kFeatures, kHead, kCrossWarps>;
  static constexpr int kInput = Memory::kInput, kSteps = kFeatures / 16;

  __device__ __forceinline__ CrossWalk(const CrossArguments& arguments,
                                       CrossPart launch,
                                       unsigned char* shared,
                                       bool sums_first,
                                       bool sources_last)
      : a(arguments),
        part(launch),
        memory(shared),
        block(arguments, launch),
        state(shared, Memory::kState, Memory::kShare),
        cursor(block, sums_first, group, sources_last) {}

  __device__ __forceinline__ const unsigned char* mask_of(int batch) const {
    return a.source_mask == nullptr ? nullptr : a.source_mask + int64_t{batch} * a.source_length;
  }
  __device__ __forceinline__ uint32_t stage_of(int at_step) const {
    return base + (at_step & 1) * Memory::kStage;
  }

  /// Else the compiler makes the addresses of all parts of the work before the walk, and spills.
  __device__ __forceinline__ void forget_addresses() {
    asm volatile("" : "+r"(lane), "+r"(row0), "+r"(low), "+r"(high));
  }

  /// Begins the loads of W and b; by all threads.
  __device__ __forceinline__ void load_map() const {
    if constexpr (kMap) {
      copy_weight_async<kHead, kFeatures, kCrossThreads>(
          [&](int row, int unit) { return weight.at(row, unit); }, a.weight, block.head, features);
      load_bias<kFeatures, kCrossThreads>(bias, a.bias, block.head, features);
    }
  }

  /// Begins the loads of the warp's rows of the chunk that the cursor is at: k and v, or q and, in
  /// the backward pass, d o.
  __device__ __forceinline__ void copy_next() {
    const uint32_t stage = stage_of(copied++);
    const Tile<kInput> tile{stage};
    const Tile<kHead> second{stage + Memory::kSecond};
    cursor.next(
        [&](int batch, int index) {
          const int first = (block.source_begin + index) * kCrossRows, length = a.source_length;
          const unsigned char* const mask =
              mask_of(batch) == nullptr ? nullptr : mask_of(batch) + first;
          copy(tile, a.k, batch, key_head, first, length, mask, input_units);
          copy(second, a.v, batch, value_head, first, length, mask, kHead / 8);
        },
        [&](int batch, int member, int index) {
          const int head = block.head * group + member,
                    first = (block.query_begin + index) * kCrossRows;
          copy(tile, a.q, batch, head, first, shape.length, nullptr, input_units);
          if constexpr (Memory::kHasGradO)
            copy(second, a.grad_o, batch, head, first, shape.length, nullptr, kHead / 8);
        });
    commit_copies();
  }

  template <int kColumns>
  __device__ __forceinline__ void copy(const Tile<kColumns>& tile,
                                       const View& view,
                                       int batch,
                                       int head,
                                       int first,
                                       int length,
                                       const unsigned char* mask,
                                       int units) const {
    copy_chunk_rows(tile,
                    rows_of(view, batch, head) + first * view.token_stride,
                    view.token_stride,
                    mask,
                    row0,
                    min(kCrossRows, length - first),
                    units,
                    lane);
  }

  /// Adds the block's chunks of the source to S and z (warp 0's).
  __device__ __forceinline__ void sum_source(Product& s,
                                             WeightedColumnSums<kFeatures>& z,
                                             int batch,
                                             uint32_t phi_k) {
    for (int chunk = block.source_begin; chunk < block.source_end; ++chunk, ++step) {
      const uint32_t stage = stage_of(step);
      wait_copies<1>();
      __syncwarp();
      sum_source_chunk<kHead, kFeatures, kMap>(s,
                                               z,
                                               Tile<kInput>{stage},
                                               Tile<kHead>{stage + Memory::kSecond},
                                               Tile<kFeatures>{kMap ? phi_k : stage},
                                               weight,
                                               bias,
                                               mask_of(batch),
                                               chunk * kCrossRows,
                                               a.source_length,
                                               row0,
                                               lane);
      __syncthreads();
      copy_next();
    }
  }

  const CrossArguments& a;
  const CrossPart part;
  unsigned char* const memory;
  const uint32_t base = shared_address(memory);
  float* const bias = reinterpret_cast<float*>(memory + Memory::kBias);
  const Tile<kHead> weight{base + Memory::kWeight};

  const Shape& shape = a.shape;
  const CrossBlock block;
  const SharedState<kHead, kFeatures> state;
  int lane = threadIdx.x & 31;
  const int warp = threadIdx.x >> 5;
  int row0 = warp * 16, low = row0 + lane / 4, high = low + 8;
  const int features = shape.feature_size, input_units = kMap ? kHead / 8 : (features + 7) / 8;
  const int group = shape.query_heads / shape.state_heads;
  const int key_head = block.head / (shape.state_heads / shape.key_heads),
            value_head = block.head / (shape.state_heads / shape.value_heads);

  CrossCursor cursor;
  int copied = 0, step = 0;  // chunks whose loads have begun; that were used
};

}  // namespace t2r::kernels::cuda
