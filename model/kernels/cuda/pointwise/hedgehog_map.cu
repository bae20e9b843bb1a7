#include "model/kernels/cuda/pointwise/hedgehog_map.h"

#include <algorithm>

#include "model/kernels/cuda/launch_early.cuh"
#include "model/kernels/cuda/pointwise/hedgehog_backward.cuh"

namespace t2r::kernels::cuda {
namespace hedgehog {
namespace {

constexpr int kWaves = 2;  // of blocks, forward

/// Block (blocks of tiles, head): a warp takes 16 tokens at a time, the next ones' x being on their
/// way.
template <int kHead, int kRows, bool kWhole>
__global__ void __launch_bounds__(kThreads, 2)
    hedgehog_forward_kernel(const __grid_constant__ HedgehogMap a) {
  constexpr int kTiles = kRows / 8;
  __shared__ uint4 fragments[kTiles * (kHead / 32) * 32];
  __shared__ __align__(16) float bias[kRows];
  const int lane = threadIdx.x & 31, warp = threadIdx.x >> 5;
  const Assignment to = assignment_of(a, blockIdx.y);
  const Columns<kRows> columns{a.rows, 8 * (lane & 3)};
  const int64_t tokens = int64_t{a.batch} * a.length, step = int64_t{gridDim.x} * kTileRows;
  int64_t low = int64_t{blockIdx.x} * kTileRows + 16 * warp + lane / 4;
  const bf16* const x = static_cast<const bf16*>(to.heads->x.data);
  bf16* const phi = static_cast<bf16*>(to.heads->phi.data);
  const auto load_x = [&](uint4(&values)[kHead / 32], int64_t token) {
    const bool exists = token < tokens;
    load_units<kHead>(values,
                      x + (exists ? row_offset(to.heads->x, token, a.length, to.x_head) : 0),
                      exists,
                      lane);
  };
  wait_for_earlier_kernels();
  uint4 x_low[kHead / 32], x_high[kHead / 32];
  load_x(x_low, low);
  load_x(x_high, low + 8);
  load_weight<kHead, kRows>(
      fragments, static_cast<const bf16*>(a.weight) + int64_t{to.map} * a.rows * kHead, a.rows);
  load_bias<kRows, kThreads>(bias, a.bias, to.map, a.rows);
  __syncthreads();
  for (; low - lane / 4 < tokens; low += step) {
    float y[kTiles][4];
    multiply(y, x_low, x_high, fragments, lane);
    load_x(x_low, low + step);
    load_x(x_high, low + step + 8);
    const Logits<kRows, kWhole> logits(y, bias, columns);
    // A row and a half of phi at a time, for registers.
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const int64_t token = low + 8 * i;
      bf16* const row =
          phi + (token < tokens ? row_offset(to.heads->phi, token, a.length, to.head) : 0);
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        float value[kTiles][2], sum = 0.0F;
#pragma unroll
        for (int tile = 0; tile < kTiles; ++tile)
#pragma unroll
          for (int j = 0; j < 2; ++j) {
            const float power =
                half == 0 ? logits.up(y[tile][2 * i + j], i) : logits.down(y[tile][2 * i + j], i);
            value[tile][j] = columns.template counts<kWhole>(tile, j) ? power : 0.0F;
            sum += value[tile][j];
          }
        const float inverse = 1.0F / row_sum(sum);
        if (token >= tokens) continue;
#pragma unroll
        for (int unit = 0; unit < kRows / 32; ++unit) {
          if (kWhole || (a.rows % 8 == 0 && columns.of(4 * unit, 0) < a.rows)) {
            float packed[8];
#pragma unroll
            for (int j = 0; j < 8; ++j) packed[j] = value[4 * unit + j / 2][j & 1] * inverse;
            store(row + half * a.rows + columns.of(4 * unit, 0), packed);
          } else if (a.rows % 8 != 0) {
#pragma unroll
            for (int j = 0; j < 8; ++j) {
              const int tile = 4 * unit + j / 2;
              if (columns.template counts<kWhole>(tile, j & 1))
                row[half * a.rows + columns.of(tile, j & 1)] =
                    from_float<bf16>(value[tile][j & 1] * inverse);
            }
          }
        }
      }
    }
  }
}

/// All warps make d y and d x of 16 tokens each and add those tokens to their share of dW, d b.
template <int kHead, int kRows, bool kWhole>
__global__ void __launch_bounds__(kThreads, kHead == 128 ? 1 : 2)
    hedgehog_backward_kernel(const __grid_constant__ HedgehogMap a) {
  extern __shared__ __align__(128) unsigned char memory[];
  HedgehogBackward<kHead, kRows, kWhole>(a, memory).run();
}

int num_heads(const HedgehogMap& a) {
  return a.tensors[0].heads + a.tensors[1].heads;
}

/// Blocks along the tokens of one head: about two for each of 132 multiprocessors in all, times
/// `waves`.
int blocks_along(const HedgehogMap& a, int waves) {
  const int64_t tiles = divide_up(int64_t{a.batch} * a.length, kTileRows);
  return static_cast<int>(
      std::clamp<int64_t>(divide_up(int64_t{132} * 2 * waves, num_heads(a)), 1, tiles));
}

template <int kHead, int kRows, bool kWhole>
struct ForwardPass {
  static cudaError_t launch(const HedgehogMap& a, cudaStream_t stream) {
    return launch_early(a.early,
                        &hedgehog_forward_kernel<kHead, kRows, kWhole>,
                        dim3(blocks_along(a, kWaves), num_heads(a)),
                        kThreads,
                        0,
                        stream,
                        a);
  }
};

template <int kHead, int kRows, bool kWhole>
struct BackwardPass {
  static cudaError_t launch(const HedgehogMap& a, cudaStream_t stream) {
    constexpr int kBytes =
        2 * kRows * kHead * 2 + kTileRows * (kRows + kHead) * 2 + 4 * kRows * (1 + kWarps);
    const auto kernel = &hedgehog_backward_kernel<kHead, kRows, kWhole>;
    const cudaError_t error =
        cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, kBytes);
    if (error != cudaSuccess) return error;
    kernel<<<dim3(blocks_along(a, 1), num_heads(a)), kThreads, kBytes, stream>>>(a);
    return cudaGetLastError();
  }
};

template <template <int, int, bool> class Pass, int kHead>
cudaError_t launch_rows(const HedgehogMap& a, cudaStream_t stream) {
  if (a.rows == 64) return Pass<kHead, 64, true>::launch(a, stream);
  if (a.rows == 32) return Pass<kHead, 32, true>::launch(a, stream);
  return a.rows < 32 ? Pass<kHead, 32, false>::launch(a, stream)
                     : Pass<kHead, 64, false>::launch(a, stream);
}

template <template <int, int, bool> class Pass>
cudaError_t launch_pass(const HedgehogMap& a, cudaStream_t stream) {
  if (a.head_size == 32) return launch_rows<Pass, 32>(a, stream);
  if (a.head_size == 64) return launch_rows<Pass, 64>(a, stream);
  return launch_rows<Pass, 128>(a, stream);
}

/// A warp a row.
template <bool kBackward>
__global__ void __launch_bounds__(kThreads)
    softmax_pair_kernel(const __grid_constant__ SoftmaxPair a) {
  const int lane = threadIdx.x & 31;
  const int64_t row = int64_t{blockIdx.x} * kWarps + threadIdx.x / 32;
  if (row >= a.rows) return;
  const int64_t width = a.width;
  const float* const y = a.y + row * width;
  float largest = -INFINITY, least = INFINITY;
  for (int64_t i = lane; i < width; i += 32)
    largest = fmaxf(largest, y[i]), least = fminf(least, y[i]);
  largest = reduce_warp(largest, Max());
  least = -reduce_warp(-least, Max());
  const float* const g = a.grad_phi + row * 2 * width;
  float up = 0.0F, down = 0.0F, inner_up = 0.0F, inner_down = 0.0F;
  for (int64_t i = lane; i < width; i += 32) {
    const float e_up = expf(y[i] - largest), e_down = expf(least - y[i]);
    up += e_up, down += e_down;
    if constexpr (kBackward) inner_up += e_up * g[i], inner_down += e_down * g[width + i];
  }
  up = 1.0F / reduce_warp(up, Add()), down = 1.0F / reduce_warp(down, Add());
  if constexpr (kBackward)
    inner_up = reduce_warp(inner_up, Add()) * up,
    inner_down = reduce_warp(inner_down, Add()) * down;
  for (int64_t i = lane; i < width; i += 32) {
    const float phi_up = expf(y[i] - largest) * up, phi_down = expf(least - y[i]) * down;
    if constexpr (kBackward) {
      a.grad_y[row * width + i] =
          phi_up * (g[i] - inner_up) - phi_down * (g[width + i] - inner_down);
    } else {
      a.phi[row * 2 * width + i] = phi_up;
      a.phi[row * 2 * width + width + i] = phi_down;
    }
  }
}

}  // namespace
}  // namespace hedgehog

int hedgehog_parts(const HedgehogMap& a) {
  return hedgehog::num_heads(a) / a.maps * hedgehog::blocks_along(a, 1);
}

cudaError_t hedgehog_forward(const HedgehogMap& a, cudaStream_t stream) {
  return hedgehog::launch_pass<hedgehog::ForwardPass>(a, stream);
}

cudaError_t hedgehog_backward(const HedgehogMap& a, cudaStream_t stream) {
  cudaError_t error = hedgehog::launch_pass<hedgehog::BackwardPass>(a, stream);
  const int64_t parts = hedgehog_parts(a), biases = int64_t{a.maps} * a.rows;
  if (error == cudaSuccess)
    error = sum_rows(
        a.weight_parts, parts, biases * a.head_size, static_cast<bf16*>(a.grad_weight), stream);
  if (error == cudaSuccess)
    error = sum_rows(a.bias_parts, parts, biases, static_cast<bf16*>(a.grad_bias), stream);
  return error;
}

cudaError_t softmax_pair(const SoftmaxPair& a, cudaStream_t stream) {
  if (a.rows == 0) return cudaSuccess;
  const unsigned blocks = static_cast<unsigned>(divide_up(a.rows, hedgehog::kWarps));
  if (a.grad_phi != nullptr) {
    hedgehog::softmax_pair_kernel<true><<<blocks, hedgehog::kThreads, 0, stream>>>(a);
  } else {
    hedgehog::softmax_pair_kernel<false><<<blocks, hedgehog::kThreads, 0, stream>>>(a);
  }
  return cudaGetLastError();
}

}  // namespace t2r::kernels::cuda
