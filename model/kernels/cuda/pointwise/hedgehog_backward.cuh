#pragma once

#include "model/kernels/cuda/pointwise/hedgehog_tiles.cuh"

namespace t2r::kernels::cuda::hedgehog {

/// A block of threads of hedgehog_backward_kernel: (part of the tokens, head). A lane has tokens
/// `low` and low + 8 of its warp's 16 of a tile. g is the gradient of phi, whose halves are `up`
/// (softmax of y) and `down` (of -y); db sums d y in registers.
///
/// Barriers: W and b are in shared memory | per tile: d y and x are | dW has them.
template <int kHead, int kRows, bool kWhole>
class HedgehogBackward {
 public:
  __device__ __forceinline__ HedgehogBackward(const HedgehogMap& arguments, unsigned char* shared)
      : a(arguments), memory(shared), dw(threadIdx.x >> 5) {}

  __device__ __forceinline__ void run() {
    const bf16* const weight =
        static_cast<const bf16*>(a.weight) + int64_t{to.map} * a.rows * kHead;
    load_weight<kHead, kRows>(fragments, weight, a.rows);
    load_weight_transposed<kHead, kRows>(transposed, weight, a.rows);
    load_bias<kRows, kThreads>(bias, a.bias, to.map, a.rows);
    __syncthreads();
    for (int64_t begin = int64_t{blockIdx.x} * kTileRows; begin < tokens; begin += step) {
      const int64_t low = begin + 16 * warp + lane / 4;
      Units dy;
      make_grad_y(dy, low);
      __syncthreads();
      write_grad_x(dy, low);
      dw.template add<kTileRows>(dy_tile, x_tile, 0, kTileRows, lane);
      __syncthreads();
    }
    write_parts();
  }

 private:
  static constexpr int kTiles = kRows / 8, kUnits = kHead / 32, kPhiUnits = kRows / 32;
  using Units = uint4[2][kPhiUnits];       // [row], features in units of 16 bytes
  using GradPhi = uint4[2][2][kPhiUnits];  // [row][half]

  /// d y of the warp's tokens, in registers and, with x, in shared memory.
  __device__ __forceinline__ void make_grad_y(Units& dy, int64_t low) {
    uint4 x_low[kUnits], x_high[kUnits];
    GradPhi g;
    load_rows(x_low, x_high, g, low);
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
#pragma unroll
    for (int i = 0; i < 2; ++i) grad_row(dy, g, y, logits, i);
#pragma unroll
    for (int unit = 0; unit < kPhiUnits; ++unit) {
      dy_tile.store_a(
          {dy[0][unit].x, dy[1][unit].x, dy[0][unit].y, dy[1][unit].y}, 16 * warp, 4 * unit, lane);
      dy_tile.store_a({dy[0][unit].z, dy[1][unit].z, dy[0][unit].w, dy[1][unit].w},
                      16 * warp,
                      4 * unit + 2,
                      lane);
    }
  }

  __device__ __forceinline__ void load_rows(uint4 (&x_low)[kUnits],
                                            uint4 (&x_high)[kUnits],
                                            GradPhi& g,
                                            int64_t low) const {
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
  }

  /// Through both softmaxes: d y = up (g - mean of g) - down (g - mean of g), of one of the rows.
  __device__ __forceinline__ void grad_row(Units& dy,
                                           const GradPhi& g,
                                           const float (&y)[kTiles][4],
                                           const Logits<kRows, kWhole>& logits,
                                           int i) {
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

  /// d x = d y W of the warp's tokens.
  __device__ __forceinline__ void write_grad_x(const Units& dy, int64_t low) const {
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

  /// Epilogue. Parts of dW and d b: [heads of the map and of its tensor, and this block's share of
  /// the tokens][map].
  __device__ __forceinline__ void write_parts() {
    const int per_map = to.heads->heads / a.maps;
    const int part =
        ((to.tensor == 0 ? 0 : a.tensors[0].heads / a.maps) + to.head % per_map) * gridDim.x +
        blockIdx.x;
    float* const weight_part = a.weight_parts + (int64_t{part} * a.maps + to.map) * a.rows * kHead;
    dw.for_each_pair(lane, [&](int row, int column, const float* pair) {
      const int of = column_of(row);
      if (of < a.rows)
        *reinterpret_cast<float2*>(weight_part + of * kHead + column_of(column)) = {pair[0],
                                                                                    pair[1]};
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

  const HedgehogMap& a;
  unsigned char* const memory;
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

  SharedProduct<kRows, kHead, kWarps> dw;
  float db[kTiles][2] = {};
};

}  // namespace t2r::kernels::cuda::hedgehog
