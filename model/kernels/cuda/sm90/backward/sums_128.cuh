#pragma once

#include "model/kernels/cuda/sm90/backward/state_sums.cuh"

namespace t2r::kernels::cuda::sm90 {

/// Sums over rows of tiles, each times a weight, held by one warp, without the tensor cores:
/// mma.sync would wait for all the wgmma that other warps have queued.
template <int kFeatures>
struct RowSums {
  static constexpr int kUnits = kFeatures / 8, kParts = 32 / kUnits,
                       kValues = 8 / kParts;  // kParts lanes share 8 features
  float value[kValues] = {};

  /// The first of this lane's features.
  __device__ __forceinline__ static int first_feature(int lane) {
    const int part = lane / kUnits;  // its bits, the highest first, choose halves
    return 8 * (lane % kUnits) + (kParts == 4 ? 2 * part : part);
  }

  /// Adds 16 rows; `weight(row)` is the weight of the tile's row `row`.
  template <class Weight>
  __device__ __forceinline__ void add(const Tile<kFeatures>& x,
                                      int row,
                                      int lane,
                                      const Weight& weight) {
    float sum[8] = {};
#pragma unroll
    for (int i = 0; i < 16 / kParts; ++i) {
      const int r = row + i * kParts + lane / kUnits;
      const uint4 unit = load_shared_16(x.at(r, lane % kUnits));
      const uint32_t pairs[4] = {unit.x, unit.y, unit.z, unit.w};
      const float w = weight(r);
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        const float2 pair = unpack(pairs[j]);
        sum[2 * j] = fmaf(w, pair.x, sum[2 * j]);
        sum[2 * j + 1] = fmaf(w, pair.y, sum[2 * j + 1]);
      }
    }
#pragma unroll
    for (int mask = 16, count = 4; mask >= kUnits; mask /= 2, count /= 2) {
      const bool upper = (lane & mask) != 0;
#pragma unroll
      for (int i = 0; i < count; ++i) {
        const float keep = upper ? sum[i + count] : sum[i], send = upper ? sum[i] : sum[i + count];
        sum[i] = keep + __shfl_xor_sync(0xffffffffu, send, mask);
      }
    }
#pragma unroll
    for (int i = 0; i < kValues; ++i) value[i] += sum[i];
  }

  /// Calls body(feature, sum) for the features that this lane holds.
  template <class Body>
  __device__ __forceinline__ void for_each(int lane, const Body& body) const {
#pragma unroll
    for (int i = 0; i < kValues; ++i) body(first_feature(lane) + i, value[i]);
  }
};

/// The third warpgroup of head size 128: dS and dz over chunks, dW and d b over all of them.
///
/// dS lies in shared memory rounded to bfloat16, H. What H v_s lacks is nearly the same for every
/// s, as far as v has a mean: it is made up for by (dS - H) times the mean of some of the chunk's
/// v, which goes with dz.
template <int kFeatures, bool kMap, BackwardPart kPart>
class SumsConsumer<128, kFeatures, kMap, kPart> {
 public:
  using Block = BackwardBlock<128, kFeatures, kMap, kPart>;
  __device__ __forceinline__ explicit SumsConsumer(const Block& owner) : block(owner) {}

  __device__ __forceinline__ void run() const {
    take_registers<168>();
    // dS^T and dW^T, the halves' rows one after the other; of dz and d b each warp's share.
    Matrix ds = {}, dw = {};
    RowSums<kFeatures> dz, db;
    if constexpr (kColumnPart) {
      start(ds, dz);
      publish_state(0, ds, dz);
    }
    for (int turn = 0; turn < block.turns; ++turn) {
      add_chunk(turn, ds, dz);
      if constexpr (kMap && kRowPart) {
        block.wait_full(Pipelines::kQ, turn);
        block.wait_full(Pipelines::kGradYQ, turn);
        add_to_map(
            block.input_of(turn, Memory::kQ), block.grad_y_q, 1.0F / block.a.rule.scale, dw, db);
        block.release(Pipelines::kGradYQ, turn);
      }
      if constexpr (kColumnPart) {
        if (turn + 1 < block.turns) publish_state(turn + 1, ds, dz);
      }
      if constexpr (kMap && kColumnPart) {
        block.wait_full(Pipelines::kK, turn);
        block.wait_full(Pipelines::kGradYK, turn);
        add_to_map(block.input_of(turn, Memory::kK), block.grad_y_k, 1.0F, dw, db);
        block.release(Pipelines::kGradYK, turn);
        block.release(Pipelines::kK, turn);
      }
    }
    // And with dz's place.
    if constexpr (kColumnPart) block.wait_released(Pipelines::kGradState, block.turns - 1);
    store_sums(ds, dw, dz, db);
  }

 private:
  using Memory = typename Block::Memory;
  using Pipelines = typename Block::Pipelines;
  using Matrix = float[2][kFeatures / 8][4];
  static constexpr int kSteps = Block::kSteps;
  static constexpr bool kRowPart = Block::kRowPart, kColumnPart = Block::kColumnPart;

  /// What later segments, or the gradient of the final state, send back.
  __device__ __forceinline__ void start(Matrix& ds, RowSums<kFeatures>& dz) const {
    const int lane = block.lane;
    const StartState from = start_grad_state<128>(block);
    if (from.s == nullptr) return;
#pragma unroll
    for (int half = 0; half < 2; ++half)
#pragma unroll
      for (int n = 0; n < kFeatures / 8; ++n)
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          const int feature = n * 8 + 2 * (lane & 3) + (i & 1);
          if (feature < block.features)
            ds[half][n][i] =
                from.s[feature * 128 + half * kHead + (i < 2 ? block.low : block.high)];
        }
#pragma unroll
    for (int i = 0; i < RowSums<kFeatures>::kValues; ++i) {
      const int feature = RowSums<kFeatures>::first_feature(lane) + i;
      if (block.warp % 4 == 0 && feature < block.features) dz.value[i] = from.z[feature];
    }
  }

  /// dS += d o^T R, dz += e^T R.
  __device__ __forceinline__ void add_chunk(int turn, Matrix& ds, RowSums<kFeatures>& dz) const {
    const Tile<kFeatures> scaled_phi_q = block.scaled_phi_q_of(turn);
    const HeadTiles grad_o = block.value_of(turn, Memory::kGradO);
    const float* const e = block.e_of(turn);
    block.wait_full(Pipelines::kGradO, turn);
    block.wait_full(Pipelines::kRows, turn);
    begin_products();
#pragma unroll
    for (int half = 0; half < 2; ++half)
#pragma unroll
      for (int step = 0; step < 4; ++step)
        product<Major::kMN, Major::kMN>(ds[half],
                                        operand<Major::kMN>(grad_o[half], 0, step),
                                        operand<Major::kMN>(scaled_phi_q, 0, step),
                                        true);
    commit_products();
    dz.add(scaled_phi_q, block.row0, block.lane, [&](int row) { return e[row]; });
    wait_products<0>();
    settle(ds[0]);
    settle(ds[1]);
    block.release(Pipelines::kRows, turn);
    if constexpr (kColumnPart) {
      block.publish(Pipelines::kGradOSummed, turn);
    } else {
      block.release(Pipelines::kGradO, turn);
    }
  }

  /// dW += x^T d y; d b += the sum of d y, times `weight_of_rows`.
  __device__ __forceinline__ void add_to_map(const HeadTiles& x,
                                             const Tile<kFeatures>& grad_y,
                                             float weight_of_rows,
                                             Matrix& dw,
                                             RowSums<kFeatures>& db) const {
    begin_products();
#pragma unroll
    for (int half = 0; half < 2; ++half)
#pragma unroll
      for (int step = 0; step < 4; ++step)
        product<Major::kMN, Major::kMN>(dw[half],
                                        operand<Major::kMN>(x[half], 0, step),
                                        operand<Major::kMN>(grad_y, 0, step),
                                        true);
    commit_products();
    db.add(grad_y, block.row0, block.lane, [&](int) { return weight_of_rows; });
    wait_products<0>();
    settle(dw[0]);
    settle(dw[1]);
  }

  /// Hands dS, rounded, and dz to the columns; with dz goes what the rounding has left out.
  __device__ __forceinline__ void publish_state(int turn,
                                                const Matrix& ds,
                                                const RowSums<kFeatures>& dz) const {
    const int lane = block.lane;
    float* const dz_shared = block.dz_of(turn);
    float mean[2][2] = {};
    sample_mean(turn, mean);
    block.wait_empty(Pipelines::kGradState, turn);
    float missing[kFeatures / 16][2];
    store_rounded(turn, ds, mean, missing);
    const int n = reduce_missing(missing);
    *reinterpret_cast<float2*>(dz_shared + (block.warp & 3) * kFeatures + 8 * n +
                               2 * (lane & 3)) = {missing[0][0], missing[0][1]};
    __syncwarp();
    dz.for_each(lane, [&](int feature, float value) {
      dz_shared[(block.warp & 3) * kFeatures + feature] += value;
    });
    sync_warpgroup(3);
    const int feature = block.tid & 127;
    if (feature < kFeatures) {
      float* const to = dz_shared + feature;
      *to = (to[0] + to[kFeatures]) + (to[2 * kFeatures] + to[3 * kFeatures]);
    }
    make_visible_to_wgmma();
    block.publish(Pipelines::kGradState, turn);
  }

  /// The mean of four of the chunk's v, in the lane's two columns of each half.
  __device__ __forceinline__ void sample_mean(int turn, float (&mean)[2][2]) const {
    const int valid = block.valid_of(turn);
    block.wait_full(Pipelines::kV, turn);
#pragma unroll
    for (int i = 0; i < 4; ++i)
#pragma unroll
      for (int half = 0; half < 2; ++half)
#pragma unroll
        for (int j = 0; j < 2; ++j) {
          const int column = block.low + 8 * j;
          const uint32_t at =
              block.value_of(turn, Memory::kV)[half].at(i * valid / 4, column / 8) + column % 8 * 2;
          mean[half][j] +=
              0.25F *
              __bfloat162float(*reinterpret_cast<const bf16*>(block.memory + (at - block.base)));
        }
  }

  __device__ __forceinline__ static float exchange(float keep, float send, int mask) {
    return keep + __shfl_xor_sync(0xffffffffu, send, mask);
  }

  /// Stores dS rounded, and begins the sums of (dS - H) times the mean over the eight lanes of a
  /// column: every exchange halves what a lane looks after.
  __device__ __forceinline__ void store_rounded(int turn,
                                                const Matrix& ds,
                                                const float (&mean)[2][2],
                                                float (&missing)[kFeatures / 16][2]) const {
    const bool upper16 = (block.lane & 16) != 0;
#pragma unroll
    for (int pair = 0; pair < kSteps / 2; ++pair) {
      float sums[2][4] = {};
#pragma unroll
      for (int side = 0; side < 2; ++side) {
        const int step = pair + side * kSteps / 2;
#pragma unroll
        for (int half = 0; half < 2; ++half) {
          uint32_t rounded[4];
#pragma unroll
          for (int i = 0; i < 4; ++i) {
            const float x = ds[half][2 * step + i / 2][2 * (i & 1)],
                        y = ds[half][2 * step + i / 2][2 * (i & 1) + 1];
            rounded[i] = pack(x, y);
            const float2 there = unpack(rounded[i]);
            sums[side][i / 2 * 2] = fmaf(x - there.x, mean[half][i & 1], sums[side][i / 2 * 2]);
            sums[side][i / 2 * 2 + 1] =
                fmaf(y - there.y, mean[half][i & 1], sums[side][i / 2 * 2 + 1]);
          }
          block.ds_hi_of(turn).store_a(rounded, half * kHead + block.row0, 2 * step, block.lane);
        }
      }
#pragma unroll
      for (int i = 0; i < 4; ++i)
        missing[2 * pair + i / 2][i & 1] =
            exchange(upper16 ? sums[1][i] : sums[0][i], upper16 ? sums[0][i] : sums[1][i], 16);
    }
  }

  /// Ends those sums: what is left to a lane stands in missing[0]. Returns which eight features it
  /// belongs to.
  __device__ __forceinline__ int reduce_missing(float (&missing)[kFeatures / 16][2]) const {
    const int lane = block.lane;
    const bool upper16 = (lane & 16) != 0, upper8 = (lane & 8) != 0, upper4 = (lane & 4) != 0;
    int n = upper16 ? kFeatures / 16 : 0;
#pragma unroll
    for (int count = kFeatures / 32, mask = 8; mask >= 4; mask /= 2, count /= 2) {
      const bool upper = mask == 8 ? upper8 : upper4;
      if (count > 0 && upper) n += count;
#pragma unroll
      for (int i = 0; i < (count > 0 ? count : 1); ++i)
#pragma unroll
        for (int j = 0; j < 2; ++j) {
          if (count > 0) {
            missing[i][j] = exchange(upper ? missing[i + count][j] : missing[i][j],
                                     upper ? missing[i][j] : missing[i + count][j],
                                     mask);
          } else {
            missing[i][j] = exchange(missing[i][j], missing[i][j], mask);
          }
        }
    }
    return n;
  }

  /// The warps' shares added up: of this thread's feature.
  __device__ __forceinline__ float add_shares(const RowSums<kFeatures>& shares) const {
    float* const dz_shared = block.dz_of(0);
    shares.for_each(block.lane, [&](int feature, float value) {
      dz_shared[(block.warp & 3) * kFeatures + feature] = value;
    });
    sync_warpgroup(3);
    const float* const from = dz_shared + (block.tid & (kFeatures - 1));
    return (from[0] + from[kFeatures]) + (from[2 * kFeatures] + from[3 * kFeatures]);
  }

  /// Epilogue.
  __device__ __forceinline__ void store_sums(const Matrix& ds,
                                             const Matrix& dw,
                                             const RowSums<kFeatures>& dz,
                                             const RowSums<kFeatures>& db) const {
    const auto write = [&](const Matrix& value, float* to) {
#pragma unroll
      for (int half = 0; half < 2; ++half)
        write_transposed<128>(value[half], to + half * kHead, block);
    };
    const int feature = block.tid & 127;
    const float whole_dz = add_shares(dz);
    const GradStateTarget to = grad_state_target<128, kPart>(block);
    if (to.s != nullptr) {
      write(ds, to.s);
      if (feature < block.features) to.z[feature] = whole_dz;
    }
    if constexpr (kMap) {
      float* const part = grad_map_target<128, kPart>(block);
      write(dw, part);
      sync_warpgroup(3);  // dz has been read
      const float whole_db = add_shares(db);
      if (feature < block.features) {
        part[block.features * 128 + feature] = whole_db;
        part[block.features * 128 + block.features + feature] = 0.0F;
      }
    }
  }

  const Block& block;
};

}  // namespace t2r::kernels::cuda::sm90
