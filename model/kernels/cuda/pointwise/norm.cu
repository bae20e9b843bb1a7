#include "model/kernels/cuda/pointwise/norm.h"

#include <algorithm>

#include "model/kernels/cuda/rows.cuh"

namespace t2r::kernels::cuda {
namespace {

constexpr int kAnyThreads = 256;

/// A group of threads holds a row in registers, `kHeld` vectors a thread; small groups share a
/// block.
template <int kGroup, int kHeld>
struct Layout {
  static constexpr int kThreads = kGroup < 128 ? 128 : kGroup;
  static constexpr int kRowsPerBlock = kThreads / kGroup;
  static constexpr int kBlocksPerMultiprocessor = kGroup > 128 ? 1
                                                  : kHeld < 4  ? 4
                                                              : 3;  // 128 or 168 registers a thread
};

template <int kGroup>
__device__ __forceinline__ float reduce_group(float x, float* scratch) {
  if constexpr (kGroup == 32) {
    return reduce_warp(x, Add());
  } else {
    return reduce_block(x, Add(), scratch);
  }
}

template <class Scalar, bool kLayerNorm, int kGroup, int kHeld>
__global__ void __launch_bounds__(Layout<kGroup, kHeld>::kThreads)
    forward_kernel(const __grid_constant__ NormForward a) {
  using L = Layout<kGroup, kHeld>;
  constexpr int kWidth = kVectorWidth<Scalar>;
  __shared__ float scratch[32];
  const int member = threadIdx.x % kGroup, vectors = a.width / kWidth;
  const float per_column = 1.0F / static_cast<float>(a.width);
  const int64_t stride = int64_t{gridDim.x} * L::kRowsPerBlock;
  // With a group of several warps the row is the block's: nobody leaves the loop before the others.
  for (int64_t row = int64_t{blockIdx.x} * L::kRowsPerBlock + threadIdx.x / kGroup; row < a.rows;
       row += stride) {
    const int64_t begin = row * a.width;
    const Scalar* const x = static_cast<const Scalar*>(a.x) + begin;
    const Scalar* const delta = static_cast<const Scalar*>(a.delta) + begin;
    float held[kHeld][kWidth], added[kHeld][kWidth];
#pragma unroll
    for (int i = 0; i < kHeld; ++i) {
      const int vector = member + i * kGroup;
      if (vector < vectors) {
        load(held[i], x + vector * kWidth);
        if (a.delta != nullptr) load(added[i], delta + vector * kWidth);
      }
    }
    float total = 0.0F;
#pragma unroll
    for (int i = 0; i < kHeld; ++i) {
      const int vector = member + i * kGroup;
      if (vector < vectors) {
        if (a.delta != nullptr) {
#pragma unroll
          for (int j = 0; j < kWidth; ++j) held[i][j] = rounded<Scalar>(held[i][j] + added[i][j]);
          store(static_cast<Scalar*>(a.sum) + begin + vector * kWidth, held[i]);
        }
#pragma unroll
        for (int j = 0; j < kWidth; ++j) total += kLayerNorm ? held[i][j] : held[i][j] * held[i][j];
      }
    }
    total = reduce_group<kGroup>(total, scratch);
    float mean = 0.0F, square = total * per_column;
    if constexpr (kLayerNorm) {
      mean = total * per_column;
      float squares = 0.0F;
#pragma unroll
      for (int i = 0; i < kHeld; ++i) {
        if (member + i * kGroup < vectors) {
#pragma unroll
          for (int j = 0; j < kWidth; ++j)
            squares = fmaf(held[i][j] - mean, held[i][j] - mean, squares);
        }
      }
      square = reduce_group<kGroup>(squares, scratch) * per_column;
    }
    const float inverse_std = rsqrtf(square + a.eps);
    if (member == 0) {
      if constexpr (kLayerNorm) a.mean[row] = mean;
      a.inverse_std[row] = inverse_std;
    }
#pragma unroll
    for (int i = 0; i < kHeld; ++i) {
      const int vector = member + i * kGroup;
      if (vector < vectors) {
        float weight[kWidth], bias[kWidth] = {};
        load_either(weight, a.weight, a.bf16_weight, vector * kWidth);
        if constexpr (kLayerNorm) load_either(bias, a.bias, a.bf16_weight, vector * kWidth);
#pragma unroll
        for (int j = 0; j < kWidth; ++j)
          held[i][j] = fmaf((held[i][j] - mean) * inverse_std, weight[j], bias[j]);
        store(static_cast<Scalar*>(a.y) + begin + vector * kWidth, held[i]);
      }
    }
  }
}

/// With h = (sum - mean) inverse_std and g = grad_y weight: grad_x = grad_sum + inverse_std (g -
/// mean(g) - h mean(g h)), without mean(g) for RMSNorm; grad_weight = sum over rows of grad_y h,
/// grad_bias of grad_y, which stay in registers until the block's rows are done.
template <class Scalar, bool kLayerNorm, int kGroup, int kHeld>
__global__ void __launch_bounds__(Layout<kGroup, kHeld>::kThreads,
                                  Layout<kGroup, kHeld>::kBlocksPerMultiprocessor)
    backward_kernel(const __grid_constant__ NormBackward a) {
  using L = Layout<kGroup, kHeld>;
  constexpr int kWidth = kVectorWidth<Scalar>;
  extern __shared__ __align__(
      16) float columns[];  // [width], [width]: where warps with rows of their own add up
  __shared__ float scratch[32];
  const int member = threadIdx.x % kGroup, group = threadIdx.x / kGroup, vectors = a.width / kWidth;
  const float per_column = 1.0F / static_cast<float>(a.width);
  const int64_t stride = int64_t{gridDim.x} * L::kRowsPerBlock;
  float grad_weight[kHeld][kWidth] = {}, grad_bias[kLayerNorm ? kHeld : 1][kWidth] = {};
  for (int64_t row = int64_t{blockIdx.x} * L::kRowsPerBlock + group; row < a.rows; row += stride) {
    const int64_t begin = row * a.width;
    const Scalar* const sum = static_cast<const Scalar*>(a.sum) + begin;
    const Scalar* const grad_y = static_cast<const Scalar*>(a.grad_y) + begin;
    const Scalar* const grad_sum = static_cast<const Scalar*>(a.grad_sum) + begin;
    const float inverse_std = a.inverse_std[row], mean = kLayerNorm ? a.mean[row] : 0.0F;
    float h[kHeld][kWidth], g[kHeld][kWidth];
#pragma unroll
    for (int i = 0; i < kHeld; ++i) {
      const int vector = member + i * kGroup;
      if (vector < vectors) {
        load(h[i], sum + vector * kWidth);
        load(g[i], grad_y + vector * kWidth);
      }
    }
    float sum_g = 0.0F, sum_gh = 0.0F;
#pragma unroll
    for (int i = 0; i < kHeld; ++i) {
      const int vector = member + i * kGroup;
      if (vector < vectors) {
        float weight[kWidth];
        load_either(weight, a.weight, a.bf16_weight, vector * kWidth);
#pragma unroll
        for (int j = 0; j < kWidth; ++j) {
          h[i][j] = (h[i][j] - mean) * inverse_std;
          grad_weight[i][j] = fmaf(g[i][j], h[i][j], grad_weight[i][j]);
          if constexpr (kLayerNorm) grad_bias[i][j] += g[i][j];
          g[i][j] *= weight[j];
          if constexpr (kLayerNorm) sum_g += g[i][j];
          sum_gh = fmaf(g[i][j], h[i][j], sum_gh);
        }
      }
    }
    sum_gh = reduce_group<kGroup>(sum_gh, scratch) * per_column;
    if constexpr (kLayerNorm) sum_g = reduce_group<kGroup>(sum_g, scratch) * per_column;
#pragma unroll
    for (int i = 0; i < kHeld; ++i) {
      const int vector = member + i * kGroup;
      if (vector < vectors) {
        float out[kWidth] = {};
        if (a.grad_sum != nullptr) load(out, grad_sum + vector * kWidth);
#pragma unroll
        for (int j = 0; j < kWidth; ++j)
          out[j] = fmaf(inverse_std, g[i][j] - sum_g - h[i][j] * sum_gh, out[j]);
        store(static_cast<Scalar*>(a.grad_x) + begin + vector * kWidth, out);
      }
    }
  }

  float* const partial_weight = a.partial + int64_t{blockIdx.x} * a.width;
  float* const partial_bias = partial_weight + int64_t{gridDim.x} * a.width;
  if constexpr (L::kRowsPerBlock == 1) {
#pragma unroll
    for (int i = 0; i < kHeld; ++i) {
      const int vector = member + i * kGroup;
      if (vector < vectors) {
        store(partial_weight + vector * kWidth, grad_weight[i]);
        if constexpr (kLayerNorm) store(partial_bias + vector * kWidth, grad_bias[i]);
      }
    }
  } else {
    for (int turn = 0; turn < L::kRowsPerBlock; ++turn) {
      if (group == turn) {
#pragma unroll
        for (int i = 0; i < kHeld; ++i) {
          const int vector = member + i * kGroup;
          if (vector < vectors) {
            const auto add = [&](float* to, float(&values)[kWidth]) {
              if (turn > 0) {
                float before[kWidth];
                load(before, to);
#pragma unroll
                for (int j = 0; j < kWidth; ++j) values[j] += before[j];
              }
              store(to, values);
            };
            add(columns + vector * kWidth, grad_weight[i]);
            if constexpr (kLayerNorm) add(columns + a.width + vector * kWidth, grad_bias[i]);
          }
        }
      }
      __syncthreads();
    }
    for (int i = threadIdx.x; i < a.width; i += L::kThreads) {
      partial_weight[i] = columns[i];
      if constexpr (kLayerNorm) partial_bias[i] = columns[a.width + i];
    }
  }
}

/// Any width and alignment: a block a row, which it reads again instead of holding it.
template <class Scalar>
__global__ void __launch_bounds__(kAnyThreads)
    forward_any_kernel(const __grid_constant__ NormForward a) {
  __shared__ float scratch[32];
  const bool layer_norm = a.bias != nullptr;
  const float per_column = 1.0F / static_cast<float>(a.width);
  for (int64_t row = blockIdx.x; row < a.rows; row += gridDim.x) {
    const Scalar* x = static_cast<const Scalar*>(a.x) + row * a.width;
    float total = 0.0F;
    if (a.delta != nullptr) {  // each thread reads again what it wrote itself
      const Scalar* const delta = static_cast<const Scalar*>(a.delta) + row * a.width;
      Scalar* const sum = static_cast<Scalar*>(a.sum) + row * a.width;
      for (int i = threadIdx.x; i < a.width; i += kAnyThreads)
        sum[i] = from_float<Scalar>(as_float(x[i]) + as_float(delta[i]));
      x = sum;
    }
    for (int i = threadIdx.x; i < a.width; i += kAnyThreads) {
      const float value = as_float(x[i]);
      total += layer_norm ? value : value * value;
    }
    total = reduce_block(total, Add(), scratch);
    float mean = 0.0F, square = total * per_column;
    if (layer_norm) {
      mean = total * per_column;
      float squares = 0.0F;
      for (int i = threadIdx.x; i < a.width; i += kAnyThreads)
        squares = fmaf(as_float(x[i]) - mean, as_float(x[i]) - mean, squares);
      square = reduce_block(squares, Add(), scratch) * per_column;
    }
    const float inverse_std = rsqrtf(square + a.eps);
    if (threadIdx.x == 0) {
      if (layer_norm) a.mean[row] = mean;
      a.inverse_std[row] = inverse_std;
    }
    Scalar* const y = static_cast<Scalar*>(a.y) + row * a.width;
    for (int i = threadIdx.x; i < a.width; i += kAnyThreads) {
      float weight[1], bias[1] = {0.0F};
      load_either(weight, a.weight, a.bf16_weight, i);
      if (layer_norm) load_either(bias, a.bias, a.bf16_weight, i);
      y[i] = from_float<Scalar>(fmaf((as_float(x[i]) - mean) * inverse_std, weight[0], bias[0]));
    }
  }
}

template <class Scalar>
__global__ void __launch_bounds__(kAnyThreads)
    backward_any_kernel(const __grid_constant__ NormBackward a) {
  extern __shared__ __align__(16) float columns[];  // [width], [width]: each thread's own columns
  __shared__ float scratch[32];
  float* const grad_weight = columns;
  float* const grad_bias = columns + a.width;
  for (int i = threadIdx.x; i < a.width; i += kAnyThreads) {
    grad_weight[i] = 0.0F;
    if (a.layer_norm) grad_bias[i] = 0.0F;
  }
  const float per_column = 1.0F / static_cast<float>(a.width);
  for (int64_t row = blockIdx.x; row < a.rows; row += gridDim.x) {
    const Scalar* const sum = static_cast<const Scalar*>(a.sum) + row * a.width;
    const Scalar* const grad_y = static_cast<const Scalar*>(a.grad_y) + row * a.width;
    const float inverse_std = a.inverse_std[row], mean = a.layer_norm ? a.mean[row] : 0.0F;
    float sum_g = 0.0F, sum_gh = 0.0F, weight[1];
    for (int i = threadIdx.x; i < a.width; i += kAnyThreads) {
      const float h = (as_float(sum[i]) - mean) * inverse_std, dy = as_float(grad_y[i]);
      load_either(weight, a.weight, a.bf16_weight, i);
      grad_weight[i] = fmaf(dy, h, grad_weight[i]);
      if (a.layer_norm) grad_bias[i] += dy;
      sum_g += dy * weight[0];
      sum_gh = fmaf(dy * weight[0], h, sum_gh);
    }
    sum_gh = reduce_block(sum_gh, Add(), scratch) * per_column;
    sum_g = a.layer_norm ? reduce_block(sum_g, Add(), scratch) * per_column : 0.0F;
    for (int i = threadIdx.x; i < a.width; i += kAnyThreads) {
      const float h = (as_float(sum[i]) - mean) * inverse_std;
      load_either(weight, a.weight, a.bf16_weight, i);
      const float g = as_float(grad_y[i]) * weight[0];
      const float before = a.grad_sum != nullptr
                               ? as_float(static_cast<const Scalar*>(a.grad_sum)[row * a.width + i])
                               : 0.0F;
      static_cast<Scalar*>(a.grad_x)[row * a.width + i] =
          from_float<Scalar>(fmaf(inverse_std, g - sum_g - h * sum_gh, before));
    }
  }
  float* const partial = a.partial + int64_t{blockIdx.x} * a.width;
  for (int i = threadIdx.x; i < a.width; i += kAnyThreads) {
    partial[i] = grad_weight[i];
    if (a.layer_norm) partial[int64_t{gridDim.x} * a.width + i] = grad_bias[i];
  }
}

/// The kernels for vectors, by how many of them a row has.
enum class Kind { kAny, kWarp2, kWarp3, kWarp4, kBlock128, kBlock256 };

Kind kind_of(int width, bool bf16_rows, bool aligned) {
  const int vector = bf16_rows ? kVectorWidth<bf16> : kVectorWidth<float>, vectors = width / vector;
  if (width % vector != 0 || !aligned || vectors > 1024) return Kind::kAny;
  if (vectors <= 64) return Kind::kWarp2;
  if (vectors <= 96) return Kind::kWarp3;
  if (vectors <= 128) return Kind::kWarp4;
  return vectors <= 512 ? Kind::kBlock128 : Kind::kBlock256;
}

/// Calls `body` with the layout of a kind that is not kAny.
template <class Body>
auto with_layout(Kind kind, const Body& body) {
  switch (kind) {
    case Kind::kWarp2:
      return body(std::integral_constant<int, 32>(), std::integral_constant<int, 2>());
    case Kind::kWarp3:
      return body(std::integral_constant<int, 32>(), std::integral_constant<int, 3>());
    case Kind::kWarp4:
      return body(std::integral_constant<int, 32>(), std::integral_constant<int, 4>());
    case Kind::kBlock128:
      return body(std::integral_constant<int, 128>(), std::integral_constant<int, 4>());
    default:
      return body(std::integral_constant<int, 256>(), std::integral_constant<int, 4>());
  }
}

Kind kind_of(const NormBackward& a) {
  return kind_of(a.width,
                 a.bf16_rows,
                 are_aligned_16(a.sum, a.weight, a.grad_sum, a.grad_y, a.grad_x, a.partial));
}

template <class Scalar, bool kLayerNorm>
cudaError_t launch_forward(const NormForward& a,
                           Kind kind,
                           int multiprocessors,
                           cudaStream_t stream) {
  return with_layout(kind, [&](auto group, auto held) {
    using L = Layout<group(), held()>;
    const int64_t resident = int64_t{multiprocessors} * (2048 / L::kThreads);
    const auto blocks =
        static_cast<unsigned>(std::min(divide_up(a.rows, L::kRowsPerBlock), resident));
    forward_kernel<Scalar, kLayerNorm, group(), held()><<<blocks, L::kThreads, 0, stream>>>(a);
    return cudaGetLastError();
  });
}

template <class Scalar>
cudaError_t launch_forward(const NormForward& a, int multiprocessors, cudaStream_t stream) {
  const Kind kind =
      kind_of(a.width, a.bf16_rows, are_aligned_16(a.x, a.delta, a.weight, a.bias, a.sum, a.y));
  if (kind != Kind::kAny) {
    return a.bias != nullptr ? launch_forward<Scalar, true>(a, kind, multiprocessors, stream)
                             : launch_forward<Scalar, false>(a, kind, multiprocessors, stream);
  }
  const auto blocks =
      static_cast<unsigned>(std::min<int64_t>(a.rows, int64_t{8} * multiprocessors));
  forward_any_kernel<Scalar><<<blocks, kAnyThreads, 0, stream>>>(a);
  return cudaGetLastError();
}

template <class Scalar, bool kLayerNorm>
cudaError_t launch_backward(const NormBackward& a, Kind kind, cudaStream_t stream) {
  return with_layout(kind, [&](auto group, auto held) {
    using L = Layout<group(), held()>;
    const int bytes =
        L::kRowsPerBlock > 1 ? 2 * a.width * static_cast<int>(sizeof(float)) : 0;  // at most 8 KB
    backward_kernel<Scalar, kLayerNorm, group(), held()>
        <<<a.blocks, L::kThreads, bytes, stream>>>(a);
    return cudaGetLastError();
  });
}

/// The sums of the gradients of weight and bias, of a kernel whose threads have columns of their
/// own.
int column_bytes(int width, bool layer_norm) {
  return (layer_norm ? 2 : 1) * width * static_cast<int>(sizeof(float));
}

template <class Scalar>
cudaError_t launch_backward(const NormBackward& a, cudaStream_t stream) {
  const Kind kind = kind_of(a);
  if (kind != Kind::kAny) {
    return a.layer_norm ? launch_backward<Scalar, true>(a, kind, stream)
                        : launch_backward<Scalar, false>(a, kind, stream);
  }
  const int bytes = column_bytes(a.width, a.layer_norm);
  const auto kernel = &backward_any_kernel<Scalar>;
  const cudaError_t error =
      cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes);
  if (error != cudaSuccess) return error;
  kernel<<<a.blocks, kAnyThreads, bytes, stream>>>(a);
  return cudaGetLastError();
}

template <class Weight>
cudaError_t add_partials(const NormBackward& a, cudaStream_t stream) {
  const cudaError_t error =
      sum_rows(a.partial, a.blocks, a.width, static_cast<Weight*>(a.grad_weight), stream);
  if (error != cudaSuccess || !a.layer_norm) return error;
  return sum_rows(a.partial + int64_t{a.blocks} * a.width,
                  a.blocks,
                  a.width,
                  static_cast<Weight*>(a.grad_bias),
                  stream);
}

}  // namespace

int64_t norm_backward_bytes(int width, bool layer_norm) {
  constexpr int kScratchBytes = 32 * static_cast<int>(sizeof(float));  // as the kernels declare it
  return column_bytes(width, layer_norm) + kScratchBytes;
}

int norm_backward_blocks(const NormBackward& a, int multiprocessors) {
  const Kind kind = kind_of(a);
  int64_t most = int64_t{2} * multiprocessors, rows_per_block = 1;
  if (kind != Kind::kAny) {
    with_layout(kind, [&](auto group, auto held) {
      using L = Layout<group(), held()>;
      most = int64_t{L::kBlocksPerMultiprocessor} * multiprocessors;
      rows_per_block = L::kRowsPerBlock;
    });
  }
  return static_cast<int>(std::min(divide_up(a.rows, rows_per_block), most));
}

cudaError_t norm_forward(const NormForward& a, int multiprocessors, cudaStream_t stream) {
  return a.bf16_rows ? launch_forward<bf16>(a, multiprocessors, stream)
                     : launch_forward<float>(a, multiprocessors, stream);
}

cudaError_t norm_backward(const NormBackward& a, cudaStream_t stream) {
  const cudaError_t error =
      a.bf16_rows ? launch_backward<bf16>(a, stream) : launch_backward<float>(a, stream);
  if (error != cudaSuccess) return error;
  return a.bf16_weight ? add_partials<bf16>(a, stream) : add_partials<float>(a, stream);
}

}  // namespace t2r::kernels::cuda
