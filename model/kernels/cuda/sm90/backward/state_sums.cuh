#pragma once

// Where the sums begin and end: gradients of states and of the map in global memory. A lane of the
// sums' warpgroup holds dS^T and dW^T as accumulators, a row for each of the head's columns.

#include "model/kernels/cuda/sm90/backward/block.cuh"

namespace t2r::kernels::cuda::sm90 {

/// Where a walk's dS and dz start from, if not from zeros.
template <int kHeadSize, class Block>
__device__ __forceinline__ StartState start_grad_state(const Block& block) {
  return start_state<kHeadSize>(
      block.a,
      block.head % block.heads_per_state == 0 ? block.a.grad_final_s : nullptr,
      block.a.grad_final_z,
      block.item,
      block.segment,
      block.batch,
      block.state_head);
}

/// Where a walk's dS [features][kHeadSize] and dz [features] go, if anywhere: to the scan of
/// segments, or to the gradient of the given state.
struct GradStateTarget {
  float *s = nullptr, *z = nullptr;
};
template <int kHeadSize, BackwardPart kPart, class Block>
__device__ __forceinline__ GradStateTarget grad_state_target(const Block& block) {
  const CausalArguments& a = block.a;
  GradStateTarget to;
  if constexpr (kPart == BackwardPart::kRows) {
    to.s = a.sums + (int64_t{block.item} * a.plan.segments + block.segment) * a.plan.sums_floats;
    to.z = to.s + block.features * kHeadSize;
  } else if (a.grad_initial_s != nullptr && block.segment == 0) {
    to.s = a.grad_initial_s + int64_t{block.item} * block.features * kHeadSize;
    to.z = a.grad_initial_z + int64_t{block.item} * block.features;
  }
  return to;
}

/// A walk's part of dW [features][kHeadSize] and of d b, with 0 for a second part of d b; parts
/// are [item][segment][launch].
template <int kHeadSize, BackwardPart kPart, class Block>
__device__ __forceinline__ float* grad_map_target(const Block& block) {
  constexpr int kLaunches = kPart == BackwardPart::kAll ? 1 : 2,
                kLaunch = kPart == BackwardPart::kColumns ? 1 : 0;
  const CausalArguments& a = block.a;
  return a.grad_weight +
         ((int64_t{block.item} * a.plan.segments + block.segment) * kLaunches + kLaunch) *
             (kHeadSize + 2) * block.features;
}

/// Writes accumulators of 64 rows, transposed: `to` is [features][kHeadSize], from their first
/// column on.
template <int kHeadSize, int kTiles, class Block>
__device__ __forceinline__ void write_transposed(const float (&value)[kTiles][4],
                                                 float* to,
                                                 const Block& block) {
#pragma unroll
  for (int n = 0; n < kTiles; ++n)
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const int feature = n * 8 + 2 * (block.lane & 3) + (i & 1);
      if (feature < block.features)
        to[feature * kHeadSize + (i < 2 ? block.low : block.high)] = value[n][i];
    }
}

}  // namespace t2r::kernels::cuda::sm90
