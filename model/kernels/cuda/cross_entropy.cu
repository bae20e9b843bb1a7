#include "model/kernels/cuda/cross_entropy.h"

#include "model/kernels/cuda/rows.cuh"

namespace t2r::kernels::cuda {
namespace {

constexpr int kManyThreads = 1024, kFewThreads = 256;
constexpr int kFewVectors = 1024;  // up to here the small block
constexpr int kReservedBytes = 1024 + 256;  // of shared memory: the system's, and what the kernel declares

/// A block a row. kStaged: the row waits in dynamic shared memory; else every pass reads it from global memory, most of it from the
/// second-level cache.
template <class Scalar, bool kStaged>
__global__ void __launch_bounds__(kManyThreads) cross_entropy_kernel(const __grid_constant__ CrossEntropy a) {
  constexpr int kWidth = kVectorWidth<Scalar>;
  extern __shared__ __align__(16) unsigned char memory[];
  __shared__ float scratch[32];
  const int64_t row = blockIdx.x, target = a.targets[row];
  const int columns = static_cast<int>(a.columns), vectors = (columns + kWidth - 1) / kWidth;
  Scalar* const logits = static_cast<Scalar*>(a.logits) + row * padded_columns(a.columns);
  if (target < 0) {
    if (a.gradient) {
      const float zeros[kWidth] = {};
      for (int i = threadIdx.x; i < vectors; i += blockDim.x) store(logits + i * kWidth, zeros);
    }
    if (threadIdx.x == 0) a.losses[row] = 0.0F;
    return;
  }
  const bool exists = target < columns;
  const float at_target = exists ? as_float(logits[target]) : NAN;  // before anything is overwritten
  Scalar* const held = kStaged ? reinterpret_cast<Scalar*>(memory) : logits;
  const auto read = [&](const Scalar* from, int vector, float(&values)[kWidth]) {
    load(values, from + vector * kWidth);
    if (!kStaged || from == logits) {  // what is behind the last column is not defined
      if ((vector + 1) * kWidth > columns) {
#pragma unroll
        for (int j = 0; j < kWidth; ++j) {
          if (vector * kWidth + j >= columns) values[j] = -INFINITY;
        }
      }
    }
  };

  float largest = -INFINITY;
#pragma unroll 4
  for (int i = threadIdx.x; i < vectors; i += blockDim.x) {
    float values[kWidth];
    read(logits, i, values);
    if constexpr (kStaged) store(held + i * kWidth, values);
#pragma unroll
    for (int j = 0; j < kWidth; ++j) largest = fmaxf(largest, values[j]);
  }
  largest = reduce_block(largest, Max(), scratch);

  float sum = 0.0F;
#pragma unroll 2
  for (int i = threadIdx.x; i < vectors; i += blockDim.x) {
    float values[kWidth];
    read(held, i, values);
#pragma unroll
    for (int j = 0; j < kWidth; ++j) sum += __expf(values[j] - largest);
  }
  sum = reduce_block(sum, Add(), scratch);
  // NaN among the logits passes fmaxf, not the sum: the loss is NaN then, too.
  if (threadIdx.x == 0) a.losses[row] = logf(sum) + (largest - at_target);
  if (!a.gradient) return;

  const float inverse_sum = 1.0F / sum;
  const int target_vector = exists ? static_cast<int>(target) / kWidth : -1, target_lane = static_cast<int>(target) % kWidth;
#pragma unroll 2
  for (int i = threadIdx.x; i < vectors; i += blockDim.x) {
    float values[kWidth];
    read(held, i, values);
#pragma unroll
    for (int j = 0; j < kWidth; ++j) values[j] = __expf(values[j] - largest) * inverse_sum;
    if (i == target_vector) {
#pragma unroll
      for (int j = 0; j < kWidth; ++j) {
        if (j == target_lane) values[j] -= 1.0F;
      }
    }
    store(logits + i * kWidth, values);
  }
}

template <class Scalar>
cudaError_t launch(const CrossEntropy& a, int shared_bytes, cudaStream_t stream) {
  const int64_t vectors = divide_up(a.columns, kVectorWidth<Scalar>), row_bytes = vectors * 16;
  const int threads = vectors <= kFewVectors ? kFewThreads : kManyThreads;
  if (row_bytes + kReservedBytes > shared_bytes) {
    cross_entropy_kernel<Scalar, false><<<static_cast<unsigned>(a.rows), threads, 0, stream>>>(a);
    return cudaGetLastError();
  }
  const auto kernel = &cross_entropy_kernel<Scalar, true>;
  const cudaError_t error =
      cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(row_bytes));
  if (error != cudaSuccess) return error;
  kernel<<<static_cast<unsigned>(a.rows), threads, static_cast<size_t>(row_bytes), stream>>>(a);
  return cudaGetLastError();
}

constexpr int kScaleThreads = 256;

template <int kWidth, class From, class To>
__global__ void __launch_bounds__(kScaleThreads) scale_kernel(const __grid_constant__ Scale a) {
  const float factor = static_cast<float>(*a.factor);
  if (a.from == a.to && factor == 1.0F) return;
  const int64_t i = (blockIdx.x * int64_t{kScaleThreads} + threadIdx.x) * kWidth;
  if (i >= a.size) return;
  float values[kWidth];
  load(values, static_cast<const From*>(a.from) + i);
#pragma unroll
  for (int j = 0; j < kWidth; ++j) values[j] *= factor;
  store(static_cast<To*>(a.to) + i, values);
}

template <class From, class To>
cudaError_t launch_scale(const Scale& a, cudaStream_t stream) {
  const bool vectors = a.size % 8 == 0 && are_aligned_16(a.from, a.to);
  const auto blocks = static_cast<unsigned>(divide_up(vectors ? a.size / 8 : a.size, kScaleThreads));
  if (vectors) {
    scale_kernel<8, From, To><<<blocks, kScaleThreads, 0, stream>>>(a);
  } else {
    scale_kernel<1, From, To><<<blocks, kScaleThreads, 0, stream>>>(a);
  }
  return cudaGetLastError();
}

}  // namespace

cudaError_t cross_entropy(const CrossEntropy& a, int shared_bytes, cudaStream_t stream) {
  if (a.rows == 0) return cudaSuccess;
  return a.bf16_logits ? launch<bf16>(a, shared_bytes, stream) : launch<float>(a, shared_bytes, stream);
}

cudaError_t scale(const Scale& a, cudaStream_t stream) {
  if (a.size == 0) return cudaSuccess;
  if (a.bf16_from) return a.bf16_to ? launch_scale<bf16, bf16>(a, stream) : launch_scale<bf16, float>(a, stream);
  return a.bf16_to ? launch_scale<float, bf16>(a, stream) : launch_scale<float, float>(a, stream);
}

}  // namespace t2r::kernels::cuda
