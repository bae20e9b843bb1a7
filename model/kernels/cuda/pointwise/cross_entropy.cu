#include "model/kernels/cuda/pointwise/cross_entropy.h"

#include "model/kernels/cuda/rows.cuh"

namespace t2r::kernels::cuda {
namespace {

constexpr int kManyThreads = 1024, kFewThreads = 256;
constexpr int kFewVectors = 1024;  // up to here the small block
constexpr int kReservedBytes =
    1024 + 256;  // of shared memory: the system's, and what the kernel declares

/// A row of logits that several passes read. kStaged: it waits in shared memory once the first has
/// read it; else every pass reads global memory, most of it from the second-level cache.
template <class Scalar, bool kStaged>
struct Row {
  static constexpr int kWidth = kVectorWidth<Scalar>;

  const Scalar* global;
  Scalar* staged;
  int columns;

  __device__ void read_first(int vector, float (&values)[kWidth]) const {
    load(values, global + vector * kWidth);
    if ((vector + 1) * kWidth > columns) {  // what is behind the last column is not defined
#pragma unroll
      for (int j = 0; j < kWidth; ++j) {
        if (vector * kWidth + j >= columns) values[j] = -INFINITY;
      }
    }
    if constexpr (kStaged) store(staged + vector * kWidth, values);
  }

  __device__ void read_again(int vector, float (&values)[kWidth]) const {
    if constexpr (kStaged) {
      load(values, staged + vector * kWidth);
    } else {
      read_first(vector, values);
    }
  }
};

/// A block a row.
template <class Scalar, bool kStaged, bool kHasTeacher>
__global__ void __launch_bounds__(kManyThreads)
    cross_entropy_kernel(const __grid_constant__ CrossEntropy a) {
  constexpr int kWidth = kVectorWidth<Scalar>;
  extern __shared__ __align__(16) unsigned char memory[];
  __shared__ float scratch[32];
  const int64_t row = blockIdx.x, target = a.targets[row], begin = row * padded_columns(a.columns);
  const int columns = static_cast<int>(a.columns), vectors = (columns + kWidth - 1) / kWidth;
  Scalar* const logits = static_cast<Scalar*>(a.logits) + begin;
  if (target < 0) {
    if (a.gradient) {
      const float zeros[kWidth] = {};
      for (int i = threadIdx.x; i < vectors; i += blockDim.x) store(logits + i * kWidth, zeros);
    }
    if (threadIdx.x == 0) a.losses[row] = 0.0F;
    return;
  }
  const bool exists = target < columns;
  const float at_target =
      exists ? as_float(logits[target]) : NAN;  // before anything is overwritten
  Scalar* const staged = reinterpret_cast<Scalar*>(memory);
  const Row<Scalar, kStaged> own{logits, staged, columns};
  const Row<Scalar, kStaged> teacher{
      static_cast<const Scalar*>(a.teacher_logits) + begin, staged + vectors * kWidth, columns};

  float largest = -INFINITY, teacher_largest = -INFINITY;
#pragma unroll 4
  for (int i = threadIdx.x; i < vectors; i += blockDim.x) {
    float values[kWidth];
    own.read_first(i, values);
#pragma unroll
    for (int j = 0; j < kWidth; ++j) largest = fmaxf(largest, values[j]);
    if constexpr (kHasTeacher) {
      teacher.read_first(i, values);
#pragma unroll
      for (int j = 0; j < kWidth; ++j) teacher_largest = fmaxf(teacher_largest, values[j]);
    }
  }
  largest = reduce_block(largest, Max(), scratch);
  if constexpr (kHasTeacher) teacher_largest = reduce_block(teacher_largest, Max(), scratch);

  float sum = 0.0F, teacher_sum = 0.0F,
        difference = 0.0F;  // difference: of the two rows' logits, as the teacher weights them
#pragma unroll 2
  for (int i = threadIdx.x; i < vectors; i += blockDim.x) {
    float values[kWidth];
    own.read_again(i, values);
#pragma unroll
    for (int j = 0; j < kWidth; ++j) sum += __expf(values[j] - largest);
    if constexpr (kHasTeacher) {
      float teachers[kWidth];
      teacher.read_again(i, teachers);
#pragma unroll
      for (int j = 0; j < kWidth; ++j) {
        const float logit = teachers[j] - teacher_largest, weight = __expf(logit);
        teacher_sum += weight;
        difference += weight > 0.0F ? weight * (logit - (values[j] - largest)) : 0.0F;
      }
    }
  }
  sum = reduce_block(sum, Add(), scratch);
  // NaN among the logits passes fmaxf, not the sums: the loss is NaN then, too.
  float loss = logf(sum) + (largest - at_target);
  if constexpr (kHasTeacher) {
    teacher_sum = reduce_block(teacher_sum, Add(), scratch);
    const float divergence =
        reduce_block(difference, Add(), scratch) / teacher_sum + (logf(sum) - logf(teacher_sum));
    loss = (1.0F - a.teacher_share) * loss + a.teacher_share * divergence;
  }
  if (threadIdx.x == 0) a.losses[row] = loss;
  if (!a.gradient) return;

  const float inverse_sum = 1.0F / sum,
              teacher_factor = kHasTeacher ? a.teacher_share / teacher_sum : 0.0F;
  const float target_share = kHasTeacher ? 1.0F - a.teacher_share : 1.0F;
  const int target_vector = exists ? static_cast<int>(target) / kWidth : -1,
            target_lane = static_cast<int>(target) % kWidth;
#pragma unroll 2
  for (int i = threadIdx.x; i < vectors; i += blockDim.x) {
    float values[kWidth];
    own.read_again(i, values);
#pragma unroll
    for (int j = 0; j < kWidth; ++j) values[j] = __expf(values[j] - largest) * inverse_sum;
    if constexpr (kHasTeacher) {
      float teachers[kWidth];
      teacher.read_again(i, teachers);
#pragma unroll
      for (int j = 0; j < kWidth; ++j)
        values[j] -= __expf(teachers[j] - teacher_largest) * teacher_factor;
    }
    if (i == target_vector) {
#pragma unroll
      for (int j = 0; j < kWidth; ++j) {
        if (j == target_lane) values[j] -= target_share;
      }
    }
    store(logits + i * kWidth, values);
  }
}

template <class Scalar, bool kHasTeacher>
cudaError_t launch(const CrossEntropy& a, int shared_bytes, cudaStream_t stream) {
  const int64_t vectors = divide_up(a.columns, kVectorWidth<Scalar>),
                staged_bytes = vectors * 16 * (kHasTeacher ? 2 : 1);
  const int threads = vectors <= kFewVectors ? kFewThreads : kManyThreads;
  if (staged_bytes + kReservedBytes > shared_bytes) {
    cross_entropy_kernel<Scalar, false, kHasTeacher>
        <<<static_cast<unsigned>(a.rows), threads, 0, stream>>>(a);
    return cudaGetLastError();
  }
  const auto kernel = &cross_entropy_kernel<Scalar, true, kHasTeacher>;
  const cudaError_t error = cudaFuncSetAttribute(
      kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(staged_bytes));
  if (error != cudaSuccess) return error;
  kernel<<<static_cast<unsigned>(a.rows), threads, static_cast<size_t>(staged_bytes), stream>>>(a);
  return cudaGetLastError();
}

template <class Scalar>
cudaError_t launch(const CrossEntropy& a, int shared_bytes, cudaStream_t stream) {
  return a.teacher_logits != nullptr ? launch<Scalar, true>(a, shared_bytes, stream)
                                     : launch<Scalar, false>(a, shared_bytes, stream);
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
  const auto blocks =
      static_cast<unsigned>(divide_up(vectors ? a.size / 8 : a.size, kScaleThreads));
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
  return a.bf16_logits ? launch<bf16>(a, shared_bytes, stream)
                       : launch<float>(a, shared_bytes, stream);
}

cudaError_t scale(const Scale& a, cudaStream_t stream) {
  if (a.size == 0) return cudaSuccess;
  if (a.bf16_from)
    return a.bf16_to ? launch_scale<bf16, bf16>(a, stream) : launch_scale<bf16, float>(a, stream);
  return a.bf16_to ? launch_scale<float, bf16>(a, stream) : launch_scale<float, float>(a, stream);
}

}  // namespace t2r::kernels::cuda
