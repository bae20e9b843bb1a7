#include "model/kernels/cuda/pointwise/hedgehog_map.h"

#include <algorithm>

#include "model/kernels/cuda/causal/causal_common.cuh"
#include "model/kernels/cuda/launch_early.cuh"
#include "model/kernels/cuda/rows.cuh"

namespace t2r::kernels::cuda {
namespace {

// Products of a warp's 16 rows take columns in another order, so that what a lane needs or has lies
// side by side in memory: place 8 t + 2 c + j of 32 (tile t, lane c of four, j of a pair) is column
// 8 c + 2 t + j. As k of an A operand, as n of a result and as k of the product behind it that is
// one and the same order, and a lane loads and stores units of 16 bytes.
__device__ __forceinline__ int column_of(int place) {
  return (place & ~31) + 8 * ((place & 7) >> 1) + 2 * ((place >> 3) & 3) + (place & 1);
}

constexpr int kThreads = 256, kWarps = kThreads / 32, kTileRows = 16 * kWarps;
constexpr int kWaves = 2;  // of blocks, forward

/// What a block works on.
struct Assignment {
  const HedgehogHeads* heads;
  int tensor, head, map, x_head;
};
__device__ __forceinline__ Assignment assignment_of(const HedgehogMap& a, int index) {
  Assignment to{};
  to.tensor = index < a.tensors[0].heads ? 0 : 1;
  to.heads = &a.tensors[to.tensor];
  to.head = index - (to.tensor == 0 ? 0 : a.tensors[0].heads);
  to.map = to.head / (to.heads->heads / a.maps);
  to.x_head = to.head / (to.heads->heads / to.heads->x_heads);
  return to;
}

/// A token's row of a view.
__device__ __forceinline__ int64_t row_offset(const View& view,
                                              int64_t token,
                                              int length,
                                              int head) {
  const int64_t batch = quotient(token, length);
  return batch * view.batch_stride + (token - batch * length) * view.token_stride +
         head * view.head_stride;
}

/// W as B fragments, 16 bytes a lane for every tile of 8 rows and every 32 columns: two k-steps.
/// Zeros behind the rows.
template <int kHead, int kRows>
__device__ __forceinline__ void load_weight(uint4* fragments, const bf16* w, int rows) {
  constexpr int kUnits = kHead / 32;
  for (int i = threadIdx.x; i < kRows / 8 * kUnits * 32; i += kThreads) {
    const int lane = i & 31, unit = i / 32 % kUnits, tile = i / 32 / kUnits;
    const int row = column_of(8 * tile + lane / 4);
    const uint4 zero = {0, 0, 0, 0};
    fragments[i] =
        row < rows ? *reinterpret_cast<const uint4*>(w + row * kHead + 32 * unit + 8 * (lane & 3))
                   : zero;
  }
}

/// The transpose of W, likewise: n are its columns, k its rows.
template <int kHead, int kRows>
__device__ __forceinline__ void load_weight_transposed(uint4* fragments, const bf16* w, int rows) {
  constexpr int kUnits = kRows / 32;
  for (int i = threadIdx.x; i < kHead / 8 * kUnits * 32; i += kThreads) {
    const int lane = i & 31, unit = i / 32 % kUnits, tile = i / 32 / kUnits;
    const int column = column_of(8 * tile + lane / 4), row0 = 32 * unit + 8 * (lane & 3);
    const auto at = [&](int row) {
      return row < rows ? uint32_t{reinterpret_cast<const uint16_t*>(w)[row * kHead + column]} : 0U;
    };
    fragments[i] = {at(row0) | at(row0 + 1) << 16,
                    at(row0 + 2) | at(row0 + 3) << 16,
                    at(row0 + 4) | at(row0 + 5) << 16,
                    at(row0 + 6) | at(row0 + 7) << 16};
  }
}

/// c = a B, a in units of 32 columns: two k-steps of rows r and r + 8.
template <int kUnits, int kTiles>
__device__ __forceinline__ void multiply(float (&c)[kTiles][4],
                                         const uint4 (&low)[kUnits],
                                         const uint4 (&high)[kUnits],
                                         const uint4* fragments,
                                         int lane) {
#pragma unroll
  for (auto& tile : c)
#pragma unroll
    for (float& x : tile) x = 0.0F;
#pragma unroll
  for (int unit = 0; unit < kUnits; ++unit) {
    const uint32_t first[4] = {low[unit].x, high[unit].x, low[unit].y, high[unit].y};
    const uint32_t second[4] = {low[unit].z, high[unit].z, low[unit].w, high[unit].w};
#pragma unroll
    for (int tile = 0; tile < kTiles; ++tile) {
      const uint4 b = fragments[(tile * kUnits + unit) * 32 + lane];
      mma(c[tile], first, b.x, b.y);
      mma(c[tile], second, b.z, b.w);
    }
  }
}

/// This lane's values of one row: y[tile][2 i], y[tile][2 i + 1] for row i of two.
template <int kRows>
struct Columns {
  int rows;   // of W; the columns behind them do not count
  int first;  // 8 (lane % 4)
  __device__ __forceinline__ int of(int tile, int j) const {
    return 32 * (tile / 4) + first + 2 * (tile % 4) + j;
  }
  template <bool kWhole>
  __device__ __forceinline__ bool counts(int tile, int j) const {
    return kWhole || of(tile, j) < rows;
  }
};

__device__ __forceinline__ float row_max(float x) {
  x = fmaxf(x, __shfl_xor_sync(kAllLanes, x, 1));
  return fmaxf(x, __shfl_xor_sync(kAllLanes, x, 2));
}

constexpr float kLog2e = 1.4426950408889634F;

/// y + bias in units of log 2, and the largest and the least of each row.
template <int kRows, bool kWhole>
struct Logits {
  static constexpr int kTiles = kRows / 8;
  float largest[2], least[2];

  __device__ __forceinline__ Logits(float (&y)[kTiles][4],
                                    const float* bias,
                                    const Columns<kRows>& columns) {
#pragma unroll
    for (int i = 0; i < 2; ++i) largest[i] = -INFINITY, least[i] = INFINITY;
#pragma unroll
    for (int tile = 0; tile < kTiles; ++tile) {
      const float2 add = *reinterpret_cast<const float2*>(bias + columns.of(tile, 0));
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        y[tile][i] = (y[tile][i] + ((i & 1) == 0 ? add.x : add.y)) * kLog2e;
        if (columns.template counts<kWhole>(tile, i & 1)) {
          largest[i / 2] = fmaxf(largest[i / 2], y[tile][i]);
          least[i / 2] = fminf(least[i / 2], y[tile][i]);
        }
      }
    }
#pragma unroll
    for (int i = 0; i < 2; ++i) largest[i] = row_max(largest[i]), least[i] = -row_max(-least[i]);
  }
  __device__ __forceinline__ float up(float y, int row) const {
    return exp2f(y - largest[row]);
  }
  __device__ __forceinline__ float down(float y, int row) const {
    return exp2f(least[row] - y);
  }
};

template <int kHead>
__device__ __forceinline__ void load_units(uint4 (&to)[kHead / 32],
                                           const bf16* row,
                                           bool exists,
                                           int lane) {
  const uint4 zero = {0, 0, 0, 0};
#pragma unroll
  for (int unit = 0; unit < kHead / 32; ++unit)
    to[unit] = exists ? *reinterpret_cast<const uint4*>(row + 32 * unit + 8 * (lane & 3)) : zero;
}

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

/// Block (part, head): all warps make d y and d x of 16 tokens each and add those tokens to their
/// share of dW, d b.
template <int kHead, int kRows, bool kWhole>
__global__ void __launch_bounds__(kThreads, kHead == 128 ? 1 : 2)
    hedgehog_backward_kernel(const __grid_constant__ HedgehogMap a) {
  constexpr int kTiles = kRows / 8, kUnits = kHead / 32, kPhiUnits = kRows / 32;
  extern __shared__ __align__(128) unsigned char memory[];
  uint4* const fragments = reinterpret_cast<uint4*>(memory);
  uint4* const transposed = fragments + kTiles * kUnits * 32;
  const uint32_t tiles = shared_address(transposed + kHead / 8 * kPhiUnits * 32);
  const Tile<kRows> dy_tile{tiles};
  const Tile<kHead> x_tile{tiles + kTileRows * kRows * 2};
  float* const bias = reinterpret_cast<float*>(memory + (tiles - shared_address(memory)) +
                                               kTileRows * (kRows + kHead) * 2);
  float* const bias_sums = bias + kRows;  // [warp][kRows]
  const int lane = threadIdx.x & 31, warp = threadIdx.x >> 5;
  const Assignment to = assignment_of(a, blockIdx.y);
  const Columns<kRows> columns{a.rows, 8 * (lane & 3)};
  const int64_t tokens = int64_t{a.batch} * a.length, step = int64_t{gridDim.x} * kTileRows;
  const bf16* const x = static_cast<const bf16*>(to.heads->x.data);
  const bf16* const grad_phi = static_cast<const bf16*>(to.heads->grad_phi.data);
  bf16* const grad_x = static_cast<bf16*>(to.heads->grad_x.data);
  const bf16* const weight = static_cast<const bf16*>(a.weight) + int64_t{to.map} * a.rows * kHead;
  load_weight<kHead, kRows>(fragments, weight, a.rows);
  load_weight_transposed<kHead, kRows>(transposed, weight, a.rows);
  load_bias<kRows, kThreads>(bias, a.bias, to.map, a.rows);
  SharedProduct<kRows, kHead, kWarps> dw(warp);
  float db[kTiles][2] = {};
  __syncthreads();
  for (int64_t begin = int64_t{blockIdx.x} * kTileRows; begin < tokens; begin += step) {
    const int64_t low = begin + 16 * warp + lane / 4;
    uint4 x_low[kUnits], x_high[kUnits];
    uint4 g[2][2][kPhiUnits];  // of d phi: [row][half]
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const int64_t token = low + 8 * i;
      const bool exists = token < tokens;
      load_units<kHead>(i == 0 ? x_low : x_high,
                        x + (exists ? row_offset(to.heads->x, token, a.length, to.x_head) : 0),
                        exists,
                        lane);
      const bf16* const row =
          grad_phi + (exists ? row_offset(to.heads->grad_phi, token, a.length, to.head) : 0);
#pragma unroll
      for (int half = 0; half < 2; ++half)
#pragma unroll
        for (int unit = 0; unit < kPhiUnits; ++unit) {
          const int column = columns.of(4 * unit, 0);
          uint4& value = g[i][half][unit];
          value = {0, 0, 0, 0};
          if (kWhole || a.rows % 8 == 0) {
            if (exists && (kWhole || column < a.rows))
              value = *reinterpret_cast<const uint4*>(row + half * a.rows + column);
          } else if (exists) {
            const auto at = [&](int j) {
              return column + j < a.rows ? uint32_t{reinterpret_cast<const uint16_t*>(
                                               row)[half * a.rows + column + j]}
                                         : 0U;
            };
            value = {
                at(0) | at(1) << 16, at(2) | at(3) << 16, at(4) | at(5) << 16, at(6) | at(7) << 16};
          }
        }
    }
    float y[kTiles][4];
    multiply(y, x_low, x_high, fragments, lane);
#pragma unroll
    for (int unit = 0; unit < kUnits; ++unit) {
      x_tile.store_a({x_low[unit].x, x_high[unit].x, x_low[unit].y, x_high[unit].y},
                     16 * warp,
                     4 * unit,
                     lane);
      x_tile.store_a({x_low[unit].z, x_high[unit].z, x_low[unit].w, x_high[unit].w},
                     16 * warp,
                     4 * unit + 2,
                     lane);
    }
    const Logits<kRows, kWhole> logits(y, bias, columns);
    uint4 dy[2][kPhiUnits];
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const auto pair_of = [&](int half, int tile) {
        const uint4& unit = g[i][half][tile / 4];
        return unpack(tile % 4 == 0   ? unit.x
                      : tile % 4 == 1 ? unit.y
                      : tile % 4 == 2 ? unit.z
                                      : unit.w);
      };
      float sum_up = 0.0F, sum_down = 0.0F, inner_up = 0.0F, inner_down = 0.0F;
#pragma unroll
      for (int tile = 0; tile < kTiles; ++tile) {
        const float2 g_up = pair_of(0, tile), g_down = pair_of(1, tile);
#pragma unroll
        for (int j = 0; j < 2; ++j) {
          const bool counts = columns.template counts<kWhole>(tile, j);
          const float up = counts ? logits.up(y[tile][2 * i + j], i) : 0.0F,
                      down = counts ? logits.down(y[tile][2 * i + j], i) : 0.0F;
          sum_up += up, sum_down += down;
          inner_up = fmaf(up, j == 0 ? g_up.x : g_up.y, inner_up);
          inner_down = fmaf(down, j == 0 ? g_down.x : g_down.y, inner_down);
        }
      }
      const float inverse_up = 1.0F / row_sum(sum_up), inverse_down = 1.0F / row_sum(sum_down);
      const float mean_up = row_sum(inner_up) * inverse_up,
                  mean_down = row_sum(inner_down) * inverse_down;
#pragma unroll
      for (int unit = 0; unit < kPhiUnits; ++unit) {
        uint32_t words[4];
#pragma unroll
        for (int word = 0; word < 4; ++word) {
          const int tile = 4 * unit + word;
          const float2 g_up = pair_of(0, tile), g_down = pair_of(1, tile);
          float d[2];
#pragma unroll
          for (int j = 0; j < 2; ++j) {
            const float value = y[tile][2 * i + j];
            d[j] =
                logits.up(value, i) * inverse_up * ((j == 0 ? g_up.x : g_up.y) - mean_up) -
                logits.down(value, i) * inverse_down * ((j == 0 ? g_down.x : g_down.y) - mean_down);
            if (!columns.template counts<kWhole>(tile, j)) d[j] = 0.0F;
            db[tile][j] += d[j];
          }
          words[word] = pack(d[0], d[1]);
        }
        dy[i][unit] = {words[0], words[1], words[2], words[3]};
      }
    }
#pragma unroll
    for (int unit = 0; unit < kPhiUnits; ++unit) {
      dy_tile.store_a(
          {dy[0][unit].x, dy[1][unit].x, dy[0][unit].y, dy[1][unit].y}, 16 * warp, 4 * unit, lane);
      dy_tile.store_a({dy[0][unit].z, dy[1][unit].z, dy[0][unit].w, dy[1][unit].w},
                      16 * warp,
                      4 * unit + 2,
                      lane);
    }
    __syncthreads();
    {
      float dx[kHead / 8][4];
      multiply(dx, dy[0], dy[1], transposed, lane);
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        const int64_t token = low + 8 * i;
        if (token >= tokens) continue;
        bf16* const row = grad_x + row_offset(to.heads->grad_x, token, a.length, to.head);
#pragma unroll
        for (int unit = 0; unit < kUnits; ++unit) {
          float packed[8];
#pragma unroll
          for (int j = 0; j < 8; ++j) packed[j] = dx[4 * unit + j / 2][2 * i + (j & 1)];
          store(row + 32 * unit + 8 * (lane & 3), packed);
        }
      }
    }
    dw.template add<kTileRows>(dy_tile, x_tile, 0, kTileRows, lane);
    __syncthreads();
  }

  // Parts: [heads of the map and of its tensor, and this block's share of the tokens][map].
  const int per_map = to.heads->heads / a.maps;
  const int part =
      ((to.tensor == 0 ? 0 : a.tensors[0].heads / a.maps) + to.head % per_map) * gridDim.x +
      blockIdx.x;
  float* const weight_part = a.weight_parts + (int64_t{part} * a.maps + to.map) * a.rows * kHead;
  dw.for_each_pair(lane, [&](int row, int column, const float* pair) {
    const int of = column_of(row);
    if (of < a.rows)
      *reinterpret_cast<float2*>(weight_part + of * kHead + column_of(column)) = {pair[0], pair[1]};
  });
#pragma unroll
  for (int tile = 0; tile < kTiles; ++tile)
#pragma unroll
    for (int j = 0; j < 2; ++j) {
      float sum = db[tile][j];
      sum += __shfl_xor_sync(kAllLanes, sum, 4);
      sum += __shfl_xor_sync(kAllLanes, sum, 8);
      sum += __shfl_xor_sync(kAllLanes, sum, 16);
      if (lane < 4) bias_sums[warp * kRows + columns.of(tile, j)] = sum;
    }
  __syncthreads();
  for (int i = threadIdx.x; i < a.rows; i += kThreads) {
    float sum = 0.0F;
#pragma unroll
    for (int w = 0; w < kWarps; ++w) sum += bias_sums[w * kRows + i];
    a.bias_parts[(int64_t{part} * a.maps + to.map) * a.rows + i] = sum;
  }
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

int hedgehog_parts(const HedgehogMap& a) {
  return num_heads(a) / a.maps * blocks_along(a, 1);
}

cudaError_t hedgehog_forward(const HedgehogMap& a, cudaStream_t stream) {
  return launch_pass<ForwardPass>(a, stream);
}

cudaError_t hedgehog_backward(const HedgehogMap& a, cudaStream_t stream) {
  cudaError_t error = launch_pass<BackwardPass>(a, stream);
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
  const unsigned blocks = static_cast<unsigned>(divide_up(a.rows, kWarps));
  if (a.grad_phi != nullptr) {
    softmax_pair_kernel<true><<<blocks, kThreads, 0, stream>>>(a);
  } else {
    softmax_pair_kernel<false><<<blocks, kThreads, 0, stream>>>(a);
  }
  return cudaGetLastError();
}

}  // namespace t2r::kernels::cuda
