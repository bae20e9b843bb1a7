#include "model/kernels/cuda/pointwise/column_sum.h"

#include <cuda_bf16.h>

#include <algorithm>

namespace t2r::kernels::cuda {
namespace {

using bf16 = __nv_bfloat16;

constexpr int kThreads = 256, kWarps = kThreads / 32;
constexpr int kInFlight = 4;              // rows a thread has on their way
constexpr int64_t kBlocks = 1056;         // eight for each of 132 multiprocessors
constexpr int64_t kMinRows = 8 * kWarps;  // of a part: fewer are not worth a partial sum

/// `kVector` values from 16 bytes, or one.
template <class Scalar, int kVector>
struct Values {
  float of[kVector];
};

template <class Scalar, int kVector>
__device__ __forceinline__ Values<Scalar, kVector> load(const Scalar* from) {
  Values<Scalar, kVector> values;
  if constexpr (kVector == 1) {
    values.of[0] = static_cast<float>(*from);
  } else {
    static_assert(kVector * sizeof(Scalar) == 16);
    const uint4 bits = __ldg(reinterpret_cast<const uint4*>(from));
    const uint32_t words[4] = {bits.x, bits.y, bits.z, bits.w};
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      if constexpr (sizeof(Scalar) == 4) {
        values.of[i] = __uint_as_float(words[i]);
      } else {
        values.of[2 * i] = __uint_as_float(words[i] << 16);
        values.of[2 * i + 1] = __uint_as_float(words[i] & 0xffff0000u);
      }
    }
  }
  return values;
}

/// Block (x, y) sums part y of the rows over 32 times kVector columns: a warp per row, then the
/// warps.
template <class Scalar, int kVector>
__global__ void __launch_bounds__(kThreads)
    partial_kernel(const __grid_constant__ ColumnSumArguments a, int64_t rows_per_part) {
  __shared__ float sums[kWarps][kVector][32];
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  const int64_t column = (int64_t{blockIdx.x} * 32 + lane) * kVector;
  const int64_t begin = blockIdx.y * rows_per_part, end = min(a.rows, begin + rows_per_part);
  float sum[kVector] = {};
  if (column < a.columns) {
    const Scalar* const x = static_cast<const Scalar*>(a.x) + column;
    int64_t row = begin + warp;
    for (; row + (kInFlight - 1) * kWarps < end; row += kInFlight * kWarps) {
      Values<Scalar, kVector> values[kInFlight];
#pragma unroll
      for (int i = 0; i < kInFlight; ++i)
        values[i] = load<Scalar, kVector>(x + (row + i * kWarps) * a.row_stride);
#pragma unroll
      for (int i = 0; i < kInFlight; ++i) {
#pragma unroll
        for (int j = 0; j < kVector; ++j) sum[j] += values[i].of[j];
      }
    }
    for (; row < end; row += kWarps) {
      const auto values = load<Scalar, kVector>(x + row * a.row_stride);
#pragma unroll
      for (int j = 0; j < kVector; ++j) sum[j] += values.of[j];
    }
  }
#pragma unroll
  for (int j = 0; j < kVector; ++j) sums[warp][j][lane] = sum[j];
  __syncthreads();
  for (int i = threadIdx.x; i < 32 * kVector; i += kThreads) {
    const int64_t to = (int64_t{blockIdx.x} * 32 + i / kVector) * kVector + i % kVector;
    if (to >= a.columns) continue;
    float total = 0.0F;
#pragma unroll
    for (int w = 0; w < kWarps; ++w) total += sums[w][i % kVector][i / kVector];
    a.partials[blockIdx.y * a.columns + to] = total;
  }
}

template <class Scalar>
__global__ void __launch_bounds__(kThreads)
    total_kernel(const __grid_constant__ ColumnSumArguments a, int parts) {
  __shared__ float sums[kWarps][32];
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  const int64_t column = int64_t{blockIdx.x} * 32 + lane;
  float sum = 0.0F;
  if (column < a.columns) {
    for (int part = warp; part < parts; part += kWarps)
      sum += a.partials[part * a.columns + column];
  }
  sums[warp][lane] = sum;
  __syncthreads();
  if (warp != 0 || column >= a.columns) return;
  float total = 0.0F;
#pragma unroll
  for (int w = 0; w < kWarps; ++w) total += sums[w][lane];
  static_cast<Scalar*>(a.sums)[column] = Scalar(total);
}

template <class Scalar>
cudaError_t launch(const ColumnSumArguments& a, cudaStream_t stream) {
  constexpr int kVector = 16 / sizeof(Scalar);
  const int parts = column_sum_parts(a.rows, a.columns);
  const int64_t rows_per_part = (a.rows + parts - 1) / parts;
  const bool whole = reinterpret_cast<uintptr_t>(a.x) % 16 == 0 && a.row_stride % kVector == 0 &&
                     a.columns % kVector == 0;
  const int64_t per_block = 32 * (whole ? kVector : 1);
  const dim3 grid(static_cast<unsigned>((a.columns + per_block - 1) / per_block), parts);
  if (whole) {
    partial_kernel<Scalar, kVector><<<grid, kThreads, 0, stream>>>(a, rows_per_part);
  } else {
    partial_kernel<Scalar, 1><<<grid, kThreads, 0, stream>>>(a, rows_per_part);
  }
  total_kernel<Scalar>
      <<<static_cast<unsigned>((a.columns + 31) / 32), kThreads, 0, stream>>>(a, parts);
  return cudaGetLastError();
}

}  // namespace

int column_sum_parts(int64_t rows, int64_t columns) {
  const int64_t blocks = std::max<int64_t>(1, (columns + 255) / 256),
                most = std::max<int64_t>(1, rows / kMinRows);
  return static_cast<int>(std::clamp<int64_t>((kBlocks + blocks - 1) / blocks, 1, most));
}

cudaError_t column_sum(const ColumnSumArguments& a, cudaStream_t stream) {
  if (a.columns == 0) return cudaSuccess;
  return a.bf16 ? launch<bf16>(a, stream) : launch<float>(a, stream);
}

}  // namespace t2r::kernels::cuda
