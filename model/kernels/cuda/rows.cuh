#pragma once

// Building blocks of the memory-bound kernels: vectors of 16 bytes as floats, and sums over threads
// in a fixed order.

#include <cuda_bf16.h>
#include <cuda_runtime.h>

#include <cstdint>

namespace t2r::kernels::cuda {

using bf16 = __nv_bfloat16;

inline constexpr unsigned kAllLanes = 0xffffffffU;

/// Values of one 16-byte access.
template <class Scalar>
inline constexpr int kVectorWidth = 16 / static_cast<int>(sizeof(Scalar));

__device__ __forceinline__ float as_float(float x) {
  return x;
}
__device__ __forceinline__ float as_float(bf16 x) {
  return __bfloat162float(x);
}

template <class Scalar>
__device__ __forceinline__ Scalar from_float(float x) {
  if constexpr (sizeof(Scalar) == 4) {
    return x;
  } else {
    return __float2bfloat16_rn(x);
  }
}

/// x as memory will hold it.
template <class Scalar>
__device__ __forceinline__ float rounded(float x) {
  return as_float(from_float<Scalar>(x));
}

/// kWidth neighbouring values; unless kWidth is 1 they begin at a multiple of 16 bytes and fill
/// such units.
template <int kWidth, class Scalar>
__device__ __forceinline__ void load(float (&to)[kWidth], const Scalar* from) {
  if constexpr (kWidth == 1) {
    to[0] = as_float(*from);
  } else if constexpr (sizeof(Scalar) == 4) {
#pragma unroll
    for (int i = 0; i < kWidth; i += 4) {
      const float4 unit = *reinterpret_cast<const float4*>(from + i);
      to[i] = unit.x, to[i + 1] = unit.y, to[i + 2] = unit.z, to[i + 3] = unit.w;
    }
  } else {
#pragma unroll
    for (int i = 0; i < kWidth; i += 8) {
      const uint4 unit = *reinterpret_cast<const uint4*>(from + i);
      const uint32_t words[4] = {unit.x, unit.y, unit.z, unit.w};
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        to[i + 2 * j] = __uint_as_float(words[j] << 16);
        to[i + 2 * j + 1] = __uint_as_float(words[j] & 0xffff0000U);
      }
    }
  }
}

template <int kWidth, class Scalar>
__device__ __forceinline__ void store(Scalar* to, const float (&from)[kWidth]) {
  if constexpr (kWidth == 1) {
    *to = from_float<Scalar>(from[0]);
  } else if constexpr (sizeof(Scalar) == 4) {
#pragma unroll
    for (int i = 0; i < kWidth; i += 4)
      *reinterpret_cast<float4*>(to + i) = {from[i], from[i + 1], from[i + 2], from[i + 3]};
  } else {
#pragma unroll
    for (int i = 0; i < kWidth; i += 8) {
      uint32_t words[4];
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        const __nv_bfloat162 both = __floats2bfloat162_rn(from[i + 2 * j], from[i + 2 * j + 1]);
        words[j] = *reinterpret_cast<const uint32_t*>(&both);
      }
      *reinterpret_cast<uint4*>(to + i) = {words[0], words[1], words[2], words[3]};
    }
  }
}

/// The same from memory of either type, which all threads agree on.
template <int kWidth>
__device__ __forceinline__ void load_either(float (&to)[kWidth],
                                            const void* from,
                                            bool is_bf16,
                                            int64_t index) {
  if (is_bf16) {
    load<kWidth>(to, static_cast<const bf16*>(from) + index);
  } else {
    load<kWidth>(to, static_cast<const float*>(from) + index);
  }
}

struct Add {
  static constexpr float kNeutral = 0.0F;
  __device__ float operator()(float a, float b) const { return a + b; }
};
struct Max {
  static constexpr float kNeutral = -INFINITY;
  __device__ float operator()(float a, float b) const { return fmaxf(a, b); }
};

/// Every lane gets the same bits: each step adds a pair in either order.
template <class Operation>
__device__ __forceinline__ float reduce_warp(float x, Operation operation) {
#pragma unroll
  for (int distance = 16; distance > 0; distance /= 2)
    x = operation(x, __shfl_xor_sync(kAllLanes, x, distance));
  return x;
}

/// Over a block of whole warps, all of which call it; `scratch` holds 32 floats. Every thread gets
/// the result.
template <class Operation>
__device__ __forceinline__ float reduce_block(float x, Operation operation, float* scratch) {
  const int lane = threadIdx.x & 31, warp = threadIdx.x >> 5, warps = blockDim.x >> 5;
  x = reduce_warp(x, operation);
  __syncthreads();  // the scratch of an earlier call has been read
  if (lane == 0) scratch[warp] = x;
  __syncthreads();
  return reduce_warp(lane < warps ? scratch[lane] : Operation::kNeutral, operation);
}

/// index / divisor, in 32 bits where both fit, which is some times quicker.
__device__ __forceinline__ int64_t quotient(int64_t index, int64_t divisor) {
  if (((index | divisor) >> 32) == 0)
    return static_cast<uint32_t>(index) / static_cast<uint32_t>(divisor);
  return index / divisor;
}

inline bool is_aligned_16(const void* pointer) {
  return reinterpret_cast<uintptr_t>(pointer) % 16 == 0;
}

template <class... Pointers>
bool are_aligned_16(Pointers... pointers) {
  return (is_aligned_16(pointers) && ...);
}

inline int64_t divide_up(int64_t a, int64_t b) {
  return (a + b - 1) / b;
}

inline constexpr int kSumColumns = 32, kSumRows = 16;

/// to[column] = sum over rows of from[row][column], in float32, row by row within 16 groups of rows
/// and then group by group.
template <class From, class To>
__global__ void __launch_bounds__(kSumColumns* kSumRows)
    sum_rows_kernel(const From* from, int64_t rows, int64_t columns, To* to) {
  __shared__ float parts[kSumRows][kSumColumns];
  const int64_t column = blockIdx.x * int64_t{kSumColumns} + threadIdx.x;
  float sum = 0.0F;
  if (column < columns) {
#pragma unroll 4
    for (int64_t row = threadIdx.y; row < rows; row += kSumRows)
      sum += as_float(from[row * columns + column]);
  }
  parts[threadIdx.y][threadIdx.x] = sum;
  __syncthreads();
  if (threadIdx.y == 0 && column < columns) {
#pragma unroll
    for (int i = 1; i < kSumRows; ++i) sum += parts[i][threadIdx.x];
    to[column] = from_float<To>(sum);
  }
}

template <class From, class To>
cudaError_t sum_rows(const From* from, int64_t rows, int64_t columns, To* to, cudaStream_t stream) {
  if (columns == 0) return cudaSuccess;
  const dim3 threads(kSumColumns, kSumRows);
  sum_rows_kernel<<<static_cast<unsigned>(divide_up(columns, kSumColumns)), threads, 0, stream>>>(
      from, rows, columns, to);
  return cudaGetLastError();
}

}  // namespace t2r::kernels::cuda
