#include <algorithm>

#include "model/kernels/cuda/causal/causal_common.cuh"
#include "model/kernels/cuda/causal/causal_features_backward.h"
#include "model/kernels/cuda/causal/causal_instances.h"
#include "model/kernels/cuda/causal/causal_memory.h"

namespace t2r::kernels::cuda {
namespace {

// Relative time of sequences cut into segments: whole waves of blocks, each with its start and end
// (about three chunks' worth, measured), and the second reading that cutting costs.
double relative_time(int items, int chunks, int segments, int multiprocessors, bool backward) {
  const double again = segments == 1 ? 1.0 : backward ? 1.6 : 1.5;
  const int waves = (items * segments + multiprocessors - 1) / multiprocessors;
  return again * waves * ((chunks + segments - 1) / segments + 3);
}

__global__ void scan_segments_kernel(const __grid_constant__ CausalArguments a, bool backwards) {
  const Shape& shape = a.shape;
  const int element = blockIdx.x * blockDim.x + threadIdx.x, item = blockIdx.y;
  const int matrix = shape.feature_size * shape.head_size, segments = a.plan.segments;
  if (element >= matrix + shape.feature_size) return;
  const int batch = item / shape.query_heads, head = item % shape.query_heads,
            group = shape.query_heads / shape.state_heads;
  const int64_t state = int64_t{batch} * shape.state_heads + head / group;
  const float* const from_s = backwards ? a.grad_final_s : a.initial_s;
  const float* const from_z = backwards ? a.grad_final_z : a.initial_z;
  float running = 0.0F;
  if (from_s != nullptr && (!backwards || head % group == 0)) {
    running = element < matrix ? from_s[state * matrix + element]
                               : from_z[state * shape.feature_size + element - matrix];
  }
  const int* const starts =
      a.document_start == nullptr ? nullptr : a.document_start + int64_t{batch} * shape.length;
  const int tokens = a.plan.chunks_per_segment * a.plan.chunk;
  float* const sums = a.sums + int64_t{item} * segments * a.plan.sums_floats + element;
  constexpr int kAtOnce = 8;  // loads on their way at a time
  for (int begin = 0; begin < segments; begin += kAtOnce) {
    float own[kAtOnce];
#pragma unroll
    for (int i = 0; i < kAtOnce; ++i) {
      // Nobody computes the sums of what is walked last: nobody needs them.
      const int segment = backwards ? segments - 1 - begin - i : begin + i;
      own[i] = begin + i + 1 < segments ? sums[segment * a.plan.sums_floats] : 0.0F;
    }
#pragma unroll
    for (int i = 0; i < kAtOnce; ++i) {
      const int segment = backwards ? segments - 1 - begin - i : begin + i;
      if (begin + i >= segments) break;
      sums[segment * a.plan.sums_floats] = running;
      const int last = min((segment + 1) * tokens, shape.length) - 1;
      const bool boundary = starts != nullptr && starts[last] >= segment * tokens;
      running = (boundary ? 0.0F : running) + own[i];
    }
  }
}

constexpr int kSumThreads = 512;

__global__ void __launch_bounds__(kSumThreads)
    sum_parts_kernel(const __grid_constant__ PartsSum a) {
  const int column = blockIdx.x * blockDim.x + threadIdx.x, head = blockIdx.y;
  const int weights = a.features * a.head_size, group = a.query_heads / a.state_heads;
  if (column >= weights + a.features) return;
  const int64_t part_size = weights + 2 * a.features;
  const int run = group * a.parts_per_item,
            num_parts = a.batch * run;  // one batch entry's parts lie behind each other
  const float* const first = a.parts + int64_t{head} * run * part_size + column;
  const auto part = [&](int i) {
    return first + (int64_t{i / run} * a.query_heads * a.parts_per_item + i % run) * part_size;
  };
  float sum = 0.0F;
  constexpr int kAtOnce = 8;  // loads on their way at a time
  for (int begin = 0; begin < num_parts; begin += kAtOnce) {
    float of_q[kAtOnce], of_k[kAtOnce];
#pragma unroll
    for (int i = 0; i < kAtOnce; ++i) {
      const bool is_there = begin + i < num_parts;
      of_q[i] = is_there ? *part(begin + i) : 0.0F;
      of_k[i] = is_there && column >= weights ? part(begin + i)[a.features] : 0.0F;
    }
#pragma unroll
    for (int i = 0; i < kAtOnce; ++i) sum += of_q[i] + of_k[i];
  }
  const bool is_weight = column < weights;
  const int64_t index =
      is_weight ? int64_t{head} * weights + column : int64_t{head} * a.features + column - weights;
  static_cast<__nv_bfloat16*>(is_weight ? a.grad_weight : a.grad_bias)[index] = sum;
}

struct Tiling {
  int chunk = 0, stages = 0;
};

/// The longest chunks that fit into `shared_bytes`; chunk 0: none do.
constexpr Tiling tiling_of(int head_size, int features, bool has_map, int shared_bytes) {
#define T2R_TRY_SHORT(HEAD, FEATURES, CHUNK, MAP)                                 \
  if (head_size == HEAD && features == FEATURES && has_map == MAP) {              \
    const int stages = backward_stages<HEAD, FEATURES, CHUNK, MAP>(shared_bytes); \
    if (stages > 0) return {CHUNK, stages};                                       \
  }
#define T2R_TRY(HEAD, FEATURES, CHUNK) \
  T2R_TRY_SHORT(HEAD, FEATURES, CHUNK, true) T2R_TRY_SHORT(HEAD, FEATURES, CHUNK, false)
  T2R_FOR_EACH_CAUSAL(T2R_TRY)
  T2R_FOR_EACH_SHORT_CAUSAL(T2R_TRY_SHORT)
#undef T2R_TRY
#undef T2R_TRY_SHORT
  return {};
}

/// A kernel takes every shape with given features on an A100, and all with a map on Hopper.
#define T2R_CHECK(HEAD, FEATURES, CHUNK)                                         \
  static_assert(long_chunk(HEAD, FEATURES) == CHUNK);                            \
  static_assert(tiling_of(HEAD, FEATURES, false, kAmpereSharedBytes).chunk > 0); \
  static_assert(tiling_of(HEAD, FEATURES, true, kHopperSharedBytes).chunk == CHUNK);
T2R_FOR_EACH_CAUSAL(T2R_CHECK)
#undef T2R_CHECK
static_assert(tiling_of(64, 32, true, kAmpereSharedBytes).chunk == 128, "the paper's shape");

/// What a kernel takes with the least memory; the rest goes by float32 (docs/kernels.md).
constexpr bool has_small(int head_size, int features, bool has_map) {
  return tiling_of(head_size, features, has_map, kSmallSharedBytes).chunk > 0;
}
static_assert(has_small(32, 32, true) && has_small(32, 64, true) && has_small(64, 32, true));
static_assert(has_small(32, 32, false) && has_small(32, 64, false) && has_small(64, 32, false) &&
              has_small(64, 64, false) && has_small(128, 32, false));

}  // namespace

Plan plan_causal(
    const Shape& shape, bool has_map, bool documents, bool backward, const Device& device) {
  Plan plan;
  const int padded = shape.feature_size <= 32 ? 32 : shape.feature_size <= 64 ? 64 : 128;
  const Tiling tiling = tiling_of(shape.head_size, padded, has_map, device.shared_bytes);
  if (tiling.chunk == 0) return plan;
  plan.chunk = tiling.chunk;
  plan.stages = tiling.stages;
  plan.engine = device.hopper && !documents && shape.head_size >= 64 && padded <= 64
                    ? Engine::kSm90
                    : Engine::kSm80;
  plan.padded_features = padded;
  if (plan.engine == Engine::kSm90) plan.chunk = 64;
  plan.chunks = (shape.length + plan.chunk - 1) / plan.chunk;
  plan.state_record_bytes =
      plan.engine == Engine::kSm90  // sm90::kRecordBytes
          ? int64_t{2} * padded * shape.head_size + 4 * padded + 4 * shape.head_size
          : int64_t{4} * padded * shape.head_size + 4 * padded;
  plan.sums_floats = (int64_t{shape.feature_size} * (shape.head_size + 1) + 3) / 4 *
                     4;  // aligned for vector stores
  const int items = shape.batch * shape.query_heads;
  int best = 1;
  for (int segments = 2; segments <= std::min(plan.chunks / 4, 64); ++segments) {
    if (relative_time(items, plan.chunks, segments, device.multiprocessors, backward) <
        0.97 * relative_time(items, plan.chunks, best, device.multiprocessors, backward)) {
      best = segments;
    }
  }
  plan.chunks_per_segment = (plan.chunks + best - 1) / best;
  plan.segments = (plan.chunks + plan.chunks_per_segment - 1) / plan.chunks_per_segment;
  return plan;
}

#define T2R_LAUNCH_SHORT(HEAD, FEATURES, CHUNK, MAP)                                              \
  if (a.shape.head_size == HEAD && a.plan.padded_features == FEATURES && a.plan.chunk == CHUNK && \
      (a.weight != nullptr) == MAP) {                                                             \
    return T2R_PASS<HEAD, FEATURES, CHUNK, MAP>(a, stream);                                       \
  }

#define T2R_LAUNCH(HEAD, FEATURES, CHUNK) \
  T2R_LAUNCH_SHORT(HEAD, FEATURES, CHUNK, true) T2R_LAUNCH_SHORT(HEAD, FEATURES, CHUNK, false)

#define T2R_LAUNCH_SM90(HEAD, FEATURES, PASS)                            \
  if (a.plan.engine == Engine::kSm90 && a.shape.head_size == HEAD &&     \
      a.plan.padded_features == FEATURES) {                              \
    return a.weight != nullptr ? sm90::PASS<FEATURES, true>(a, stream)   \
                               : sm90::PASS<FEATURES, false>(a, stream); \
  }

cudaError_t causal_forward_bf16(const CausalArguments& a, cudaStream_t stream) {
  T2R_LAUNCH_SM90(64, 32, launch_forward)
  T2R_LAUNCH_SM90(64, 64, launch_forward)
  T2R_LAUNCH_SM90(128, 32, launch_forward_wide)
  T2R_LAUNCH_SM90(128, 64, launch_forward_wide)
#define T2R_PASS launch_forward
  T2R_FOR_EACH_CAUSAL(T2R_LAUNCH)
  T2R_FOR_EACH_SHORT_CAUSAL(T2R_LAUNCH_SHORT)
#undef T2R_PASS
  return cudaErrorInvalidValue;
}

cudaError_t causal_backward_bf16(const CausalArguments& a, cudaStream_t stream) {
  T2R_LAUNCH_SM90(64, 32, launch_backward)
  T2R_LAUNCH_SM90(64, 64, launch_backward)
  T2R_LAUNCH_SM90(128, 32, launch_backward_wide)
  T2R_LAUNCH_SM90(128, 64, launch_backward_wide)
  if (has_causal_features_backward(a)) return causal_features_backward(a, stream);
#define T2R_PASS launch_backward
  T2R_FOR_EACH_CAUSAL(T2R_LAUNCH)
  T2R_FOR_EACH_SHORT_CAUSAL(T2R_LAUNCH_SHORT)
#undef T2R_PASS
  return cudaErrorInvalidValue;
}

cudaError_t sum_parts(const PartsSum& a, cudaStream_t stream) {
  const int columns = a.features * (a.head_size + 1);
  const dim3 blocks((columns + kSumThreads - 1) / kSumThreads, a.state_heads);
  sum_parts_kernel<<<blocks, kSumThreads, 0, stream>>>(a);
  return cudaGetLastError();
}

cudaError_t scan_segments(const CausalArguments& a, bool backwards, cudaStream_t stream) {
  const int elements = a.shape.feature_size * (a.shape.head_size + 1);
  scan_segments_kernel<<<dim3((elements + 127) / 128, a.shape.batch * a.shape.query_heads),
                         128,
                         0,
                         stream>>>(a, backwards);
  return cudaGetLastError();
}

}  // namespace t2r::kernels::cuda
