#include <algorithm>

#include "model/kernels/cuda/cross_common.cuh"
#include "model/kernels/cuda/cross_instances.h"

namespace t2r::kernels::cuda {
namespace {

constexpr int kThreads = 128;

/// Adds up element `column` of `count` consecutive parts, always in the same order.
__device__ __forceinline__ float sum_parts_of(const float* parts, int64_t count, int64_t part_floats, int column) {
  float sum = 0.0F;
#pragma unroll 8
  for (int64_t i = 0; i < count; ++i) sum += parts[i * part_floats + column];
  return sum;
}

/// State records from `count` blocks' shares each: S in the layout of Tile<kHead>, hi and lo, then z.
template <int kHead>
__global__ void cross_records_kernel(const float* sums, int count, CrossPlan plan, int features, unsigned char* records) {
  const int element = blockIdx.x * kThreads + threadIdx.x, matrix = plan.padded_features * kHead;
  if (element >= matrix + plan.padded_features) return;
  const float* const parts = sums + int64_t{blockIdx.y} * count * plan.sums_floats;
  unsigned char* const record = records + blockIdx.y * plan.record_bytes;
  if (element >= matrix) {
    const int feature = element - matrix;
    const float z = feature < features ? sum_parts_of(parts, count, plan.sums_floats, features * kHead + feature) : 0.0F;
    reinterpret_cast<float*>(record + 4 * matrix)[feature] = z;
    return;
  }
  const int row = element / kHead, column = element % kHead;
  const float s = row < features ? sum_parts_of(parts, count, plan.sums_floats, element) : 0.0F;
  const bf16 hi = __float2bfloat16(s);
  const uint32_t place = Tile<kHead>{0}.at(row, column / 8) + column % 8 * 2;
  *reinterpret_cast<bf16*>(record + place) = hi;
  *reinterpret_cast<bf16*>(record + 2 * matrix + place) = __float2bfloat16(s - __bfloat162float(hi));
}

/// d W and d b of the map from what every block left behind, the queries' first.
__global__ void cross_map_kernel(const __grid_constant__ CrossArguments a) {
  const Shape& shape = a.shape;
  const int column = blockIdx.x * kThreads + threadIdx.x, head = blockIdx.y, weights = shape.feature_size * shape.head_size;
  if (column >= weights + shape.feature_size) return;
  const int64_t per_query_state = int64_t{shape.query_heads / shape.state_heads} * a.plan.queries.segments;
  const int64_t per_source_state = a.plan.source.segments;
  float sum = 0.0F;
  for (int batch = 0; batch < shape.batch; ++batch) {
    const int64_t state = int64_t{batch} * shape.state_heads + head;
    sum += sum_parts_of(a.query_parts + state * per_query_state * a.plan.sums_floats, per_query_state, a.plan.sums_floats, column);
    sum += sum_parts_of(a.source_parts + state * per_source_state * a.plan.sums_floats, per_source_state, a.plan.sums_floats, column);
  }
  const bool is_weight = column < weights;
  const int64_t index = is_weight ? int64_t{head} * weights + column : int64_t{head} * shape.feature_size + column - weights;
  static_cast<bf16*>(is_weight ? a.grad_weight : a.grad_bias)[index] = __float2bfloat16(sum);
}

cudaError_t sum_records(const CrossArguments& a, int count, unsigned char* records, cudaStream_t stream) {
  const int elements = a.plan.padded_features * (a.shape.head_size + 1), features = a.shape.feature_size;
  for (int64_t first = 0, states = int64_t{a.shape.batch} * a.shape.state_heads; first < states; first += 65535) {
    const dim3 grid((elements + kThreads - 1) / kThreads, static_cast<unsigned>(std::min<int64_t>(states - first, 65535)));
    const float* const sums = a.sums + first * count * a.plan.sums_floats;
    unsigned char* const to = records + first * a.plan.record_bytes;
    if (a.shape.head_size == 32) cross_records_kernel<32><<<grid, kThreads, 0, stream>>>(sums, count, a.plan, features, to);
    if (a.shape.head_size == 64) cross_records_kernel<64><<<grid, kThreads, 0, stream>>>(sums, count, a.plan, features, to);
    if (a.shape.head_size == 128) cross_records_kernel<128><<<grid, kThreads, 0, stream>>>(sums, count, a.plan, features, to);
    const cudaError_t error = cudaGetLastError();
    if (error != cudaSuccess) return error;
  }
  return cudaSuccess;
}

#define T2R_LAUNCH(HEAD, FEATURES, CHUNK)                                                      \
  if (a.shape.head_size == HEAD && a.plan.padded_features == FEATURES) {                       \
    return a.weight != nullptr ? launch_cross<HEAD, FEATURES, CHUNK, true>(pass, a, stream)    \
                               : launch_cross<HEAD, FEATURES, CHUNK, false>(pass, a, stream);  \
  }

cudaError_t run_pass(CrossPass pass, const CrossArguments& a, cudaStream_t stream) {
  T2R_FOR_EACH_CAUSAL(T2R_LAUNCH)
  return cudaErrorInvalidValue;
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

CrossPlan plan_cross(const Shape& shape, int source_length, const Device& device) {
  CrossPlan plan;
  const int padded = shape.feature_size <= 32 ? 32 : shape.feature_size <= 64 ? 64 : 128;
#define T2R_MATCH(HEAD, FEATURES, CHUNK) \
  if (shape.head_size == HEAD && padded == FEATURES) plan.chunk = CHUNK;
  T2R_FOR_EACH_CAUSAL(T2R_MATCH)
#undef T2R_MATCH
  if (plan.chunk == 0) return plan;
  plan.padded_features = padded;
  plan.queries = cut_tokens(shape.length, plan.chunk, shape.batch * shape.query_heads, device.multiprocessors);
  plan.source = cut_tokens(source_length, plan.chunk, shape.batch * shape.state_heads, device.multiprocessors);
  plan.record_bytes = int64_t{4} * padded * shape.head_size + 4 * padded;
  plan.sums_floats = (int64_t{shape.feature_size} * (shape.head_size + 1) + 3) / 4 * 4;  // aligned for vector stores
  return plan;
}

cudaError_t cross_forward_bf16(const CrossArguments& a, cudaStream_t stream) {
  cudaError_t error = run_pass(CrossPass::kSums, a, stream);
  if (error == cudaSuccess) error = sum_records(a, a.plan.source.segments, a.state, stream);
  if (error == cudaSuccess) error = run_pass(CrossPass::kQueries, a, stream);
  return error;
}

cudaError_t cross_backward_bf16(const CrossArguments& a, cudaStream_t stream) {
  cudaError_t error = run_pass(CrossPass::kQueriesBackward, a, stream);
  const int group = a.shape.query_heads / a.shape.state_heads;
  if (error == cudaSuccess) error = sum_records(a, group * a.plan.queries.segments, a.grad_state, stream);
  if (error == cudaSuccess) error = run_pass(CrossPass::kSourceBackward, a, stream);
  if (error != cudaSuccess || a.weight == nullptr) return error;
  const int columns = a.shape.feature_size * (a.shape.head_size + 1);
  cross_map_kernel<<<dim3((columns + kThreads - 1) / kThreads, a.shape.state_heads), kThreads, 0, stream>>>(a);
  return cudaGetLastError();
}

}  // namespace t2r::kernels::cuda
