#include "model/kernels/cuda/pointwise/pointwise.h"

#include "model/kernels/cuda/rows.cuh"

namespace t2r::kernels::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int kAtOnce = 2;  // vectors a thread has on their way

__device__ __forceinline__ float sigmoid(float x) {
  return __fdividef(1.0F, 1.0F + __expf(-x));
}

/// Runs `body(index)` for kAtOnce indices of a thread, neighbours next to each other; `load_at`
/// goes first for all of them.
template <class Item, class Load, class Finish>
__device__ __forceinline__ void for_items(int64_t items,
                                          const Load& load_at,
                                          const Finish& finish_at) {
  const int64_t first = blockIdx.x * int64_t{kThreads * kAtOnce} + threadIdx.x;
  Item item[kAtOnce];
#pragma unroll
  for (int i = 0; i < kAtOnce; ++i) {
    if (first + i * kThreads < items) load_at(first + i * kThreads, item[i]);
  }
#pragma unroll
  for (int i = 0; i < kAtOnce; ++i) {
    if (first + i * kThreads < items) finish_at(first + i * kThreads, item[i]);
  }
}

unsigned blocks_for(int64_t items) {
  return static_cast<unsigned>(divide_up(items, kThreads * kAtOnce));
}

template <class Scalar, int kWidth, bool kBackward>
__global__ void __launch_bounds__(kThreads) swiglu_kernel(const __grid_constant__ Swiglu a) {
  struct Item {
    int64_t gate, out;
    float g[kWidth], u[kWidth], d[kBackward ? kWidth : 1];
  };
  const int64_t per_row = a.width / kWidth;
  const Scalar* const in = static_cast<const Scalar*>(a.gate_up);
  for_items<Item>(
      a.rows * per_row,
      [&](int64_t index, Item& item) {
        item.out = index * kWidth;
        item.gate = item.out + quotient(index, per_row) * a.width;
        load(item.g, in + item.gate);
        load(item.u, in + item.gate + a.width);
        if constexpr (kBackward) load(item.d, static_cast<const Scalar*>(a.grad_y) + item.out);
      },
      [&](int64_t, Item& item) {
#pragma unroll
        for (int j = 0; j < kWidth; ++j) {
          const float s = sigmoid(item.g[j]), silu = item.g[j] * s;
          if constexpr (kBackward) {
            const float d = item.d[j];
            item.g[j] = d * item.u[j] * s * (1.0F + item.g[j] * (1.0F - s));
            item.u[j] = d * silu;
          } else {
            item.g[j] = silu * item.u[j];
          }
        }
        if constexpr (kBackward) {
          store(static_cast<Scalar*>(a.grad_gate_up) + item.gate, item.g);
          store(static_cast<Scalar*>(a.grad_gate_up) + item.gate + a.width, item.u);
        } else {
          store(static_cast<Scalar*>(a.y) + item.out, item.g);
        }
      });
}

template <class Scalar, int kWidth>
__global__ void __launch_bounds__(kThreads) rotate_kernel(const __grid_constant__ Rotate a) {
  struct Item {
    int64_t angle;  // of the first column in the tables, or -1
    int64_t place;
    float low[kWidth], high[kWidth];
  };
  const int64_t per_head = a.half / kWidth;
  const Scalar* const in = static_cast<const Scalar*>(a.x);
  for_items<Item>(
      a.batch * a.length * a.heads * per_head,
      [&](int64_t index, Item& item) {
        const int64_t row = quotient(index, per_head), column = (index - row * per_head) * kWidth;
        const int64_t token = quotient(row, a.heads), head = row - token * a.heads;
        const int64_t position = token - quotient(token, a.length) * a.length;
        item.angle = head < a.rotated_heads ? position * a.half + column : -1;
        item.place = row * 2 * a.half + column;
        load(item.low, in + item.place);
        load(item.high, in + item.place + a.half);
      },
      [&](int64_t, Item& item) {
        if (item.angle >= 0) {
          float cosine[kWidth], sine[kWidth];
          load(cosine, a.cosine + item.angle);
          load(sine, a.sine + item.angle);
#pragma unroll
          for (int j = 0; j < kWidth; ++j) {
            const float s = a.backwards ? -sine[j] : sine[j], low = item.low[j],
                        high = item.high[j];
            item.low[j] = low * cosine[j] - high * s;
            item.high[j] = high * cosine[j] + low * s;
          }
        }
        store(static_cast<Scalar*>(a.y) + item.place, item.low);
        store(static_cast<Scalar*>(a.y) + item.place + a.half, item.high);
      });
}

template <class Scalar, int kWidth>
cudaError_t launch(const Swiglu& a, cudaStream_t stream) {
  const unsigned blocks = blocks_for(a.rows * (a.width / kWidth));
  if (a.grad_y != nullptr) {
    swiglu_kernel<Scalar, kWidth, true><<<blocks, kThreads, 0, stream>>>(a);
  } else {
    swiglu_kernel<Scalar, kWidth, false><<<blocks, kThreads, 0, stream>>>(a);
  }
  return cudaGetLastError();
}

template <class Scalar, int kWidth>
cudaError_t launch(const Rotate& a, cudaStream_t stream) {
  const unsigned blocks = blocks_for(a.batch * a.length * a.heads * (a.half / kWidth));
  rotate_kernel<Scalar, kWidth><<<blocks, kThreads, 0, stream>>>(a);
  return cudaGetLastError();
}

/// Vectors where `columns`, which every row has as a multiple, and the addresses allow them.
template <class Arguments>
cudaError_t launch_any(const Arguments& a, int64_t columns, bool aligned, cudaStream_t stream) {
  if (a.is_bf16) {
    return aligned && columns % kVectorWidth<bf16> == 0
               ? launch<bf16, kVectorWidth<bf16>>(a, stream)
               : launch<bf16, 1>(a, stream);
  }
  return aligned && columns % kVectorWidth<float> == 0
             ? launch<float, kVectorWidth<float>>(a, stream)
             : launch<float, 1>(a, stream);
}

}  // namespace

cudaError_t swiglu(const Swiglu& a, cudaStream_t stream) {
  if (a.rows == 0 || a.width == 0) return cudaSuccess;
  return launch_any(a, a.width, are_aligned_16(a.gate_up, a.y, a.grad_y, a.grad_gate_up), stream);
}

cudaError_t rotate_heads(const Rotate& a, cudaStream_t stream) {
  if (a.batch * a.length * a.heads * a.half == 0) return cudaSuccess;
  return launch_any(a, a.half, are_aligned_16(a.x, a.y, a.cosine, a.sine), stream);
}

}  // namespace t2r::kernels::cuda
