#include "model/kernels/cuda/decode/step_linear.h"

#include <algorithm>

#include "model/kernels/cuda/launch_early.cuh"
#include "model/kernels/cuda/rows.cuh"
#include "model/kernels/cuda/tensor_core.cuh"

namespace t2r::kernels::cuda {
namespace {

constexpr int kThreads = 256, kWarps = kThreads / 32;
constexpr int kTileRows = 8;  // rows of the weight that a block of threads takes at a time
constexpr int kStep = 32;     // columns that a warp takes at a time: 16 bytes a lane
constexpr int kAhead = 6;     // such steps on their way to registers

/// Bytes from one row of x to the next in shared memory: rows that are read together lie in
/// different banks.
__host__ __device__ inline int row_bytes(int inputs) {
  return (inputs * 2 + 63) / 128 * 128 + 64;
}
int dynamic_bytes(int rows, int inputs, int norms) {
  return rows * row_bytes(inputs) + norms * inputs * 2;
}

template <bool kPairs>
constexpr int kFoundBytes =
    2 * kWarps*(kPairs ? 2 : 1) * kMaxStepRows* kTileRows* static_cast<int>(sizeof(float));

/// x of this warp's rows into shared memory, normalised: every lane reads back only what it wrote.
__device__ __forceinline__ void normalise_rows(const StepLinear& a,
                                               char* shared,
                                               const bf16* norm_weight,
                                               const bf16* norm_bias) {
  const int lane = threadIdx.x & 31, warp = threadIdx.x >> 5, units = a.inputs / 8;
  for (int row = warp; row < a.rows; row += kWarps) {
    const uint4* const from =
        reinterpret_cast<const uint4*>(static_cast<const bf16*>(a.x) + int64_t{row} * a.inputs);
    uint4* const to = reinterpret_cast<uint4*>(shared + row * row_bytes(a.inputs));
    float sum = 0.0F, squares = 0.0F;
#pragma unroll 4
    for (int unit = lane; unit < units; unit += 32) {
      const uint4 both = from[unit];
      to[unit] = both;
      float x[8];
      load(x, reinterpret_cast<const bf16*>(&both));
#pragma unroll
      for (int j = 0; j < 8; ++j) sum += x[j], squares = fmaf(x[j], x[j], squares);
    }
    float mean = 0.0F;
    if (norm_bias != nullptr) {
      mean = reduce_warp(sum, Add()) / static_cast<float>(a.inputs);
      squares = 0.0F;
      for (int unit = lane; unit < units; unit += 32) {
        float x[8];
        load(x, reinterpret_cast<const bf16*>(to + unit));
#pragma unroll
        for (int j = 0; j < 8; ++j) squares = fmaf(x[j] - mean, x[j] - mean, squares);
      }
    }
    const float inverse =
        rsqrtf(reduce_warp(squares, Add()) / static_cast<float>(a.inputs) + a.eps);
    for (int unit = lane; unit < units; unit += 32) {
      float x[8], w[8], b[8] = {};
      load(x, reinterpret_cast<const bf16*>(to + unit));
      load(w, norm_weight + 8 * unit);
      if (norm_bias != nullptr) load(b, norm_bias + 8 * unit);
#pragma unroll
      for (int j = 0; j < 8; ++j) x[j] = fmaf((x[j] - mean) * inverse, w[j], b[j]);
      store(reinterpret_cast<bf16*>(to + unit), x);
    }
  }
}

// Symbols: x [rows, inputs] the input, y = x W^T the results; an item is one result of a row, or a
// pair of them that belong together (gate and up, or two columns that turn together); a step is 32
// columns of x and W; a turn is kAhead steps of every warp; g, t are a lane's row and place within
// a fragment.
//
// Barriers: the norm's weights are in shared memory | x is | per tile: every warp's share of the
// sums is. Shares alternate between two halves, so that one barrier a tile is enough.

/// A block of threads of step_linear_kernel.
template <bool kPairs, class Out>
class StepLinearBlock {
  static constexpr int kTiles = kPairs ? 2 : 1;

 public:
  using Found = float[2][kWarps][kTiles][kMaxStepRows][kTileRows];

  __device__ __forceinline__ StepLinearBlock(const StepLinear& arguments, char* x, Found& sums)
      : a(arguments), shared_x(x), found(sums) {}

  __device__ __forceinline__ void run() {
    Weights w;
    load_weights(w, blockIdx.x, 0);
    load_inputs();
    const int64_t position = kPairs && a.kind == StepKind::kRotate ? *a.position : 0;
    __syncthreads();
    int parity = 0;
    for (int tile = blockIdx.x; tile < tiles; tile += gridDim.x, parity ^= 1) {
      const Finish finish = load_finish(tile, position);
      multiply(w, tile, parity);
      __syncthreads();  // the other half of `found` is written next, and read before the barrier
                        // after that
      if (finish.exists) write(finish, tile, parity);
    }
  }

 private:
  using Weights = uint4[kAhead][kTiles];

  /// What one result needs beside the sums.
  struct Finish {
    bool exists;
    int columns[2];
    float bias[2] = {}, residual[2] = {}, cosine = 1.0F, sine = 0.0F;
  };

  /// Rows of W that make an item.
  __device__ __forceinline__ void rows_of(int index, int& first, int& second) const {
    if (kPairs && a.kind == StepKind::kRotate) {
      first = index / a.half * 2 * a.half + index % a.half;
      second = first + a.half;
    } else {
      first = index;
      second = index + a.outputs;
    }
  }

  __device__ __forceinline__ void load_weights(Weights& w, int tile, int turn) const {
    const int index = tile * kTileRows + g;
    int rows[2];
    rows_of(index, rows[0], rows[1]);
#pragma unroll
    for (int i = 0; i < kAhead; ++i) {
      const int unit = (warp + (turn * kAhead + i) * kWarps) * 4 + t;
#pragma unroll
      for (int j = 0; j < kTiles; ++j) {
        const uint4* const from =
            reinterpret_cast<const uint4*>(static_cast<const bf16*>(a.weight) +
                                           int64_t{rows[j]} * a.inputs) +
            unit;
        w[i][j] = index < items && unit < units ? __ldg(from) : uint4{0, 0, 0, 0};
      }
    }
  }

  /// x, normalised, to shared memory. What no earlier kernel writes is loaded before these end.
  __device__ __forceinline__ void load_inputs() const {
    bf16* const norm = reinterpret_cast<bf16*>(shared_x + a.rows * row_bytes(a.inputs));
    if (a.norm_weight != nullptr) {
      for (int unit = tid; unit < units; unit += kThreads) {
        reinterpret_cast<uint4*>(norm)[unit] = static_cast<const uint4*>(a.norm_weight)[unit];
        if (a.norm_bias != nullptr)
          reinterpret_cast<uint4*>(norm + a.inputs)[unit] =
              static_cast<const uint4*>(a.norm_bias)[unit];
      }
      __syncthreads();
    }
    wait_for_earlier_kernels();
    if (a.norm_weight != nullptr) {
      normalise_rows(a, shared_x, norm, a.norm_bias != nullptr ? norm + a.inputs : nullptr);
    } else {
      for (int i = tid; i < a.rows * units; i += kThreads) {
        reinterpret_cast<uint4*>(shared_x + i / units * row_bytes(a.inputs))[i % units] =
            static_cast<const uint4*>(a.x)[i];
      }
    }
  }

  /// Loads what this thread's result of a tile needs, before the products.
  __device__ __forceinline__ Finish load_finish(int tile, int64_t position) const {
    Finish to;
    const int index = tile * kTileRows + at;
    to.exists = row < a.rows && index < items;
    rows_of(index, to.columns[0], to.columns[1]);
    if (to.exists) {
#pragma unroll
      for (int j = 0; j < kTiles; ++j) {
        if (a.bias != nullptr)
          to.bias[j] = as_float(static_cast<const bf16*>(a.bias)[to.columns[j]]);
        if (a.residual != nullptr && to.columns[j] < a.outputs) {
          to.residual[j] = as_float(
              static_cast<const bf16*>(a.residual)[int64_t{row} * a.outputs + to.columns[j]]);
        }
      }
      if (kPairs && a.kind == StepKind::kRotate && to.columns[0] < a.rotated) {
        const bool is_known = position >= 0 && position < a.table_rows;
        const int64_t angle = is_known ? position * a.half + index % a.half : 0;
        to.cosine = is_known ? a.cosine[angle] : NAN;
        to.sine = is_known ? a.sine[angle] : NAN;
      }
    }
    return to;
  }

  /// This warp's share of a tile's sums; the next weights' loads begin.
  __device__ __forceinline__ void multiply(Weights& w, int tile, int parity) const {
    float c[kTiles][4] = {};
    for (int turn = 0; turn < turns; ++turn) {
#pragma unroll
      for (int i = 0; i < kAhead; ++i) {
        const int unit = (warp + (turn * kAhead + i) * kWarps) * 4 + t;
        uint4 low = {0, 0, 0, 0}, high = {0, 0, 0, 0};
        if (unit < units) {
          if (g < a.rows)
            low = *reinterpret_cast<const uint4*>(shared_x + g * row_bytes(a.inputs) + unit * 16);
          if (g + 8 < a.rows)
            high = *reinterpret_cast<const uint4*>(shared_x + (g + 8) * row_bytes(a.inputs) +
                                                   unit * 16);
        }
#pragma unroll
        for (int j = 0; j < kTiles; ++j) {
          mma(c[j], {low.x, high.x, low.y, high.y}, w[i][j].x, w[i][j].y);
          mma(c[j], {low.z, high.z, low.w, high.w}, w[i][j].z, w[i][j].w);
        }
      }
      const bool is_last = turn + 1 == turns;
      const int next = is_last ? tile + static_cast<int>(gridDim.x) : tile;
      if (next < tiles) load_weights(w, next, is_last ? 0 : turn + 1);
    }
#pragma unroll
    for (int j = 0; j < kTiles; ++j) {
      *reinterpret_cast<float2*>(&found[parity][warp][j][g][2 * t]) = {c[j][0], c[j][1]};
      if (a.rows > 8)
        *reinterpret_cast<float2*>(&found[parity][warp][j][g + 8][2 * t]) = {c[j][2], c[j][3]};
    }
  }

  /// Epilogue: bias, rotation or activation, residual.
  __device__ __forceinline__ void write(const Finish& finish, int tile, int parity) const {
    const int index = tile * kTileRows + at;
    float y[kTiles];
#pragma unroll
    for (int j = 0; j < kTiles; ++j) {
      y[j] = finish.bias[j];
#pragma unroll
      for (int from = 0; from < kWarps; ++from) y[j] += found[parity][from][j][row][at];
    }
    Out* const out = static_cast<Out*>(a.out) + int64_t{row} * a.outputs;
    if constexpr (kPairs) {
      if (a.kind == StepKind::kRotate) {
        out[finish.columns[0]] =
            from_float<Out>(y[0] * finish.cosine - y[1] * finish.sine + finish.residual[0]);
        out[finish.columns[1]] =
            from_float<Out>(y[1] * finish.cosine + y[0] * finish.sine + finish.residual[1]);
      } else {
        out[index] = from_float<Out>(y[0] / (1.0F + __expf(-y[0])) * y[1] + finish.residual[0]);
      }
    } else {
      constexpr float kScale = 1.5957691216057308F,
                      kCube = 0.044715F;  // 2 sqrt(2 / pi): (1 + tanh u) / 2 = sigmoid(2 u)
      if (a.kind == StepKind::kGelu)
        y[0] /= 1.0F + __expf(-kScale * (y[0] + kCube * y[0] * y[0] * y[0]));
      out[index] = from_float<Out>(y[0] + finish.residual[0]);
    }
  }

  const StepLinear& a;
  char* const shared_x;
  Found& found;  // [half][warp][tile][row of x][result]
  const int tid = threadIdx.x, lane = tid & 31, warp = tid >> 5, g = lane / 4, t = lane % 4;
  const int units = a.inputs / 8, steps = (a.inputs + kStep - 1) / kStep;
  const int items = kPairs && a.kind == StepKind::kRotate ? a.outputs / 2 : a.outputs,
            tiles = (items + kTileRows - 1) / kTileRows;
  const int turns = (steps + kWarps * kAhead - 1) /
                    (kWarps * kAhead);  // until a warp is through its share of the columns
  // What this thread finishes: one row of x, one of the tile's results.
  const int row = tid / kTileRows, at = tid % kTileRows;
};

/// Blocks of threads take tiles of 8 rows of the weight, or of 8 pairs of rows; their warps share
/// the columns. The rows of x stand in shared memory and are the product's 16 rows, absent ones
/// zero. A lane's 16 bytes hold columns 8 t to 8 t + 7 of a step of 32: which columns meet in which
/// place of the tensor cores' product makes no difference as long as x and W agree. Weights are on
/// their way before the kernels before have ended.
template <bool kPairs, class Out>
__global__ void __launch_bounds__(kThreads, kPairs ? 2 : 4)
    step_linear_kernel(const __grid_constant__ StepLinear a) {
  using Block = StepLinearBlock<kPairs, Out>;
  extern __shared__ __align__(16) char shared_x[];
  __shared__ __align__(16) typename Block::Found found;
  static_assert(sizeof(found) == kFoundBytes<kPairs>);
  Block(a, shared_x, found).run();
}

template <bool kPairs, class Out>
cudaError_t launch(const StepLinear& a, int multiprocessors, cudaStream_t stream) {
  const auto kernel = &step_linear_kernel<kPairs, Out>;
  const int norms = (a.norm_weight != nullptr ? 1 : 0) + (a.norm_bias != nullptr ? 1 : 0);
  const int bytes = dynamic_bytes(a.rows, a.inputs, norms);
  const cudaError_t error =
      cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes);
  if (error != cudaSuccess) return error;
  const int items = a.kind == StepKind::kRotate ? a.outputs / 2 : a.outputs;
  const int64_t tiles = divide_up(items, kTileRows),
                at_once = int64_t{multiprocessors} * (kPairs ? 2 : 4);
  return launch_early(a.overlaps,
                      kernel,
                      dim3(static_cast<unsigned>(std::min(tiles, at_once))),
                      kThreads,
                      bytes,
                      stream,
                      a);
}

}  // namespace

int step_linear_bytes(int rows, int inputs, int norms, bool pairs) {
  return dynamic_bytes(rows, inputs, norms) + (pairs ? kFoundBytes<true> : kFoundBytes<false>);
}

cudaError_t step_linear(const StepLinear& a, int multiprocessors, cudaStream_t stream) {
  if (a.kind == StepKind::kSwiglu || a.kind == StepKind::kRotate)
    return launch<true, bf16>(a, multiprocessors, stream);
  return a.float_out ? launch<false, float>(a, multiprocessors, stream)
                     : launch<false, bf16>(a, multiprocessors, stream);
}

}  // namespace t2r::kernels::cuda
