#include <algorithm>

#include "model/kernels/cuda/cross/cross_common.cuh"
#include "model/kernels/cuda/cross/cross_instances.h"

namespace t2r::kernels::cuda {
namespace {

constexpr int kThreads = 128;
constexpr int kMaxCluster =
    4;  // 8 were slower: a cluster has to find room in one group of multiprocessors
constexpr int kChunksOfOneLaunch =
    4;  // per block: more are walked faster by more blocks, in two launches more
constexpr int kShortSource =
    128;  // tokens that are read again faster than a record is written and read

/// Adds up element `column` of `count` consecutive parts, always in the same order.
__device__ __forceinline__ float sum_parts_of(const float* parts,
                                              int64_t count,
                                              int64_t part_floats,
                                              int column) {
  float sum = 0.0F;
#pragma unroll 8
  for (int64_t i = 0; i < count; ++i) sum += parts[i * part_floats + column];
  return sum;
}

/// State records from `count` blocks' shares each: S in the layout of Tile<kHead>, hi and lo, then
/// z.
template <int kHead>
__global__ void cross_records_kernel(
    const float* sums, int count, CrossPlan plan, int features, unsigned char* records) {
  wait_for_earlier_kernels();
  const int element = blockIdx.x * kThreads + threadIdx.x, matrix = plan.padded_features * kHead;
  if (element >= matrix + plan.padded_features) return;
  const float* const parts = sums + int64_t{blockIdx.y} * count * plan.sums_floats;
  unsigned char* const record = records + blockIdx.y * plan.record_bytes;
  if (element >= matrix) {
    const int feature = element - matrix;
    const float z = feature < features
                        ? sum_parts_of(parts, count, plan.sums_floats, features * kHead + feature)
                        : 0.0F;
    reinterpret_cast<float*>(record + 4 * matrix)[feature] = z;
    return;
  }
  const int row = element / kHead, column = element % kHead;
  const float s = row < features ? sum_parts_of(parts, count, plan.sums_floats, element) : 0.0F;
  const bf16 hi = __float2bfloat16(s);
  const uint32_t place = Tile<kHead>{0}.at(row, column / 8) + column % 8 * 2;
  *reinterpret_cast<bf16*>(record + place) = hi;
  *reinterpret_cast<bf16*>(record + 2 * matrix + place) =
      __float2bfloat16(s - __bfloat162float(hi));
}

/// d W and d b of the map from what every block left behind, the queries' first.
__global__ void cross_map_kernel(const __grid_constant__ CrossArguments a) {
  wait_for_earlier_kernels();
  const Shape& shape = a.shape;
  const int column = blockIdx.x * kThreads + threadIdx.x, head = blockIdx.y,
            weights = shape.feature_size * shape.head_size;
  if (column >= weights + shape.feature_size) return;
  float sum = 0.0F;
  const auto add_parts = [&](const float* parts, int64_t segments) {
    if (segments == 1) {  // the groups' parts of a head are evenly spaced
      sum += sum_parts_of(parts + head * a.plan.sums_floats,
                          a.plan.groups,
                          shape.state_heads * a.plan.sums_floats,
                          column);
      return;
    }
    for (int group = 0; group < a.plan.groups; ++group) {
      const int64_t slot = int64_t{group} * shape.state_heads + head;
      sum += sum_parts_of(
          parts + slot * segments * a.plan.sums_floats, segments, a.plan.sums_floats, column);
    }
  };
  add_parts(a.query_parts, a.plan.queries.segments);
  if (!a.plan.whole) add_parts(a.source_parts, a.plan.source.segments);
  const bool is_weight = column < weights;
  const int64_t index = is_weight ? int64_t{head} * weights + column
                                  : int64_t{head} * shape.feature_size + column - weights;
  static_cast<bf16*>(is_weight ? a.grad_weight : a.grad_bias)[index] = __float2bfloat16(sum);
}

cudaError_t sum_records(const CrossArguments& a,
                        int count,
                        unsigned char* records,
                        cudaStream_t stream) {
  const int elements = a.plan.padded_features * (a.shape.head_size + 1),
            features = a.shape.feature_size;
  const auto kernel = a.shape.head_size == 32   ? &cross_records_kernel<32>
                      : a.shape.head_size == 64 ? &cross_records_kernel<64>
                                                : &cross_records_kernel<128>;
  for (int64_t first = 0, states = int64_t{a.shape.batch} * a.shape.state_heads; first < states;
       first += 65535) {
    const dim3 grid((elements + kThreads - 1) / kThreads,
                    static_cast<unsigned>(std::min<int64_t>(states - first, 65535)));
    const float* const sums = a.sums + first * count * a.plan.sums_floats;
    unsigned char* const to = records + first * a.plan.record_bytes;
    const cudaError_t error = launch_early(
        a.plan.early, kernel, grid, kThreads, 0, stream, sums, count, a.plan, features, to);
    if (error != cudaSuccess) return error;
  }
  return cudaSuccess;
}

#define T2R_LAUNCH(HEAD, FEATURES, CHUNK)                                                    \
  if (a.shape.head_size == HEAD && a.plan.padded_features == FEATURES) {                     \
    return a.weight != nullptr ? launch_cross<HEAD, FEATURES, true>(pass, part, a, stream)   \
                               : launch_cross<HEAD, FEATURES, false>(pass, part, a, stream); \
  }

cudaError_t run_pass(CrossPass pass, CrossPart part, const CrossArguments& a, cudaStream_t stream) {
  T2R_FOR_EACH_CAUSAL(T2R_LAUNCH)
  return cudaErrorInvalidValue;
}

/// `segments` blocks of threads along one sequence, whether or not there is a chunk for each.
Cut cut_evenly(int length, int segments) {
  const int chunks = (length + kCrossRows - 1) / kCrossRows;
  return {.chunks = chunks,
          .segments = segments,
          .chunks_per_segment = (chunks + segments - 1) / segments};
}

}  // namespace

Cut cut_tokens(int length, int chunk, int items, int multiprocessors) {
  Cut cut;
  cut.chunks = (length + chunk - 1) / chunk;
  const int wanted = std::clamp((2 * multiprocessors + items - 1) / items, 1, cut.chunks);
  cut.chunks_per_segment = (cut.chunks + wanted - 1) / wanted;
  cut.segments = (cut.chunks + cut.chunks_per_segment - 1) / cut.chunks_per_segment;
  return cut;
}

CrossPlan plan_cross(
    const Shape& shape, int source_length, bool has_map, bool backward, const Device& device) {
  CrossPlan plan;
  const CrossPass pass = backward ? CrossPass::kBackward : CrossPass::kForward;
  const int padded = shape.feature_size <= 32 ? 32 : shape.feature_size <= 64 ? 64 : 128;
  int at_once = 0;  // blocks that the device holds
#define T2R_MATCH(HEAD, FEATURES, CHUNK)                                   \
  if (shape.head_size == HEAD && padded == FEATURES &&                     \
      cross_bytes<HEAD, FEATURES>(has_map) <= device.shared_bytes) {       \
    at_once = cross_blocks<HEAD, FEATURES>(pass) * device.multiprocessors; \
  }
  T2R_FOR_EACH_CAUSAL(T2R_MATCH)
#undef T2R_MATCH
  if (at_once == 0) return plan;
  plan.padded_features = padded;
  plan.early = device.hopper;
  plan.record_bytes = int64_t{4} * padded * shape.head_size + 4 * padded;
  plan.sums_floats = (int64_t{shape.feature_size} * (shape.head_size + 1) + 3) / 4 *
                     4;  // aligned for vector stores
  const int64_t states = int64_t{shape.batch} * shape.state_heads;
  const int64_t chunks =
      (int64_t{std::max(shape.length, source_length)} + kCrossRows - 1) / kCrossRows;
  int cluster = 1;
  if (device.hopper)
    cluster = static_cast<int>(
        std::clamp<int64_t>(at_once / states, 1, std::min<int64_t>(kMaxCluster, chunks)));
  plan.whole = 2 * cluster * states >= at_once || chunks <= int64_t{kChunksOfOneLaunch} * cluster;
  if (!plan.whole) {
    plan.queries = cut_tokens(shape.length, kCrossRows, static_cast<int>(states), at_once / 2);
    plan.source = cut_tokens(source_length, kCrossRows, static_cast<int>(states), at_once / 2);
    plan.groups = shape.batch;
    return plan;
  }
  plan.sums_again = source_length <= kShortSource;
  plan.queries = cut_evenly(shape.length, cluster);
  plan.source = cut_evenly(source_length, cluster);
  const int groups = std::clamp(at_once / (cluster * shape.state_heads), 1, shape.batch);
  plan.group_size = (shape.batch + groups - 1) / groups;
  plan.groups = (shape.batch + plan.group_size - 1) / plan.group_size;
  return plan;
}

cudaError_t cross_forward_bf16(const CrossArguments& a, cudaStream_t stream) {
  if (a.plan.whole) return run_pass(CrossPass::kForward, CrossPart::kWhole, a, stream);
  cudaError_t error = run_pass(CrossPass::kForward, CrossPart::kSource, a, stream);
  if (error == cudaSuccess) error = sum_records(a, a.plan.source.segments, a.state, stream);
  if (error == cudaSuccess) error = run_pass(CrossPass::kForward, CrossPart::kQueries, a, stream);
  return error;
}

cudaError_t cross_backward_bf16(const CrossArguments& a, cudaStream_t stream) {
  cudaError_t error = cudaSuccess;
  if (a.plan.whole) {
    error = run_pass(CrossPass::kBackward, CrossPart::kWhole, a, stream);
  } else {
    error = run_pass(CrossPass::kBackward, CrossPart::kQueries, a, stream);
    if (error == cudaSuccess) error = sum_records(a, a.plan.queries.segments, a.grad_state, stream);
    if (error == cudaSuccess) error = run_pass(CrossPass::kBackward, CrossPart::kSource, a, stream);
  }
  if (error != cudaSuccess || a.weight == nullptr) return error;
  const int columns = a.shape.feature_size * (a.shape.head_size + 1);
  return launch_early(a.plan.early,
                      &cross_map_kernel,
                      dim3((columns + kThreads - 1) / kThreads, a.shape.state_heads),
                      kThreads,
                      0,
                      stream,
                      a);
}

}  // namespace t2r::kernels::cuda
