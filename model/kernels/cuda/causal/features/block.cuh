#pragma once

#include "model/kernels/cuda/causal/features/products.cuh"

namespace t2r::kernels::cuda::features {

/// A block of threads of causal_features_backward_kernel: its place in the tensors and in shared
/// memory. A warp has 16 rows of a chunk together with one other, and `half` of their features as
/// rows; it owns 16 features of dS and dz. A lane has rows `low` and `high`.
class FeaturesBackward {
 public:
  __device__ __forceinline__ FeaturesBackward(const CausalArguments& arguments,
                                              unsigned char* shared)
      : a(arguments), memory(shared) {}

  __device__ __forceinline__ void run() const {
    copy_state(a.plan.chunks - 1);
    copy_chunk(a.plan.chunks - 1);
    start_sums();
    for (int chunk = a.plan.chunks - 1; chunk >= 0; --chunk) {
      Zs z;
      load_z(z, chunk);
      wait_copies<0>();
      __syncthreads();
      run_rows(z, chunk);
      __syncthreads();
      if (chunk > 0) copy_state(chunk - 1);
      if (half == 0) {
        run_keys(chunk);
      } else {
        run_values(chunk);
      }
      add_sums(chunk);
    }
    if (a.grad_initial_s != nullptr) write_initial_state();
  }

 private:
  using Zs = float2[kHalfFeatures / 8];  ///< z at a lane's columns of its half
  using Features = uint32_t[kHalfFeatures / 16][4];
  using Values = uint32_t[kHead / 16][4];
  using GradFeatures = float[kHalfFeatures / 8][4];
  using OwnSums = float[kHead / 8][4];  ///< of a warp's 16 features

  struct Sums {
    float den_low = 0.0F, den_high = 0.0F;
    float inner_low = 0.0F, inner_high = 0.0F;  // d o . numerator
  };
  struct Terms {
    float inverse_low, inverse_high, e_low, e_high;
  };

  __device__ __forceinline__ const unsigned char* record_of(int chunk) const {
    return a.states + (int64_t{item} * a.plan.chunks + chunk) * a.plan.state_record_bytes;
  }
  __device__ __forceinline__ bool has_state(int chunk) const {
    return chunk > 0 || a.initial_s != nullptr;
  }

  /// Begins the loads of a chunk; by all threads.
  __device__ __forceinline__ void copy_chunk(int chunk) const {
    const int64_t first = int64_t{chunk} * kChunk;
    const int valid = min(kChunk, shape.length - static_cast<int>(first));
    const auto copy = [&]<int kColumns>(
                          const Tile<kColumns>& tile, const bf16* rows, const View& view, int of) {
      const bf16* const from = rows + first * view.token_stride;
      constexpr int kUnits = kColumns / 8;
#pragma unroll
      for (int i = 0; i < kChunk * kUnits / kThreads; ++i) {
        const int index = tid + kThreads * i, row = index / kUnits, unit = index % kUnits;
        const bool is_one = row < valid && unit < of;
        copy_async_16(
            tile.at(row, unit), from + (is_one ? row * view.token_stride + unit * 8 : 0), is_one);
      }
    };
    copy(q_tile, q, a.q, units);
    copy(k_tile, k, a.k, units);
    copy(v_tile, v, a.v, kHead / 8);
    copy(grad_o_tile, grad_o, a.grad_o, kHead / 8);
    commit_copies();
  }
  /// Begins the load of S before a chunk, or of zeros; by all threads.
  __device__ __forceinline__ void copy_state(int chunk) const {
    const bool exists = has_state(chunk);
    const unsigned char* const record = record_of(chunk);
#pragma unroll
    for (int i = 0; i < 4 * kFeatures * kHead / 16 / kThreads; ++i) {
      const int index = tid + kThreads * i;
      copy_async_16(base + Memory::kState + 16 * index, record + (exists ? 16 * index : 0), exists);
    }
    commit_copies();
  }
  __device__ __forceinline__ void load_z(Zs& z, int chunk) const {
    const float* const from =
        reinterpret_cast<const float*>(record_of(chunk) + 4 * kFeatures * kHead) +
        half * kHalfFeatures + 2 * (lane & 3);
#pragma unroll
    for (int n = 0; n < kHalfFeatures / 8; ++n)
      z[n] = has_state(chunk) ? *reinterpret_cast<const float2*>(from + 8 * n) : float2{0.0F, 0.0F};
  }

  /// Prologue: dS and dz are the gradient of the final state, in the first head of a group.
  __device__ __forceinline__ void start_sums() const {
    const bool given = a.grad_final_s != nullptr && head % group == 0;
    const int64_t state = int64_t{batch} * shape.state_heads + state_head;
    OwnSums c = {};
    if (given) {
      for_own_pairs(c, [&](int feature, int column, float* pair) {
        const float* const from = a.grad_final_s + (state * features + feature) * kHead + column;
        pair[0] = from[0], pair[1] = from[1];
      });
    }
    store_split_rows(ds_hi, ds_lo, 16 * warp, c, lane);
    if (tid < kFeatures)
      dz_shared[tid] = given && tid < features ? a.grad_final_z[state * features + tid] : 0.0F;
  }

  /// Rows: e, d phi(q) and R.
  __device__ __forceinline__ void run_rows(Zs& z, int chunk) const {
    Features phi_q;
    Values own_grad_o;
#pragma unroll
    for (int step = 0; step < kHalfFeatures / 16; ++step)
      q_tile.load_a(phi_q[step], row0, first_unit + 2 * step, lane);
#pragma unroll
    for (int step = 0; step < kHead / 16; ++step)
      grad_o_tile.load_a(own_grad_o[step], row0, 2 * step, lane);
    GradFeatures dphi = {};  // S d o, then d phi(q)
    multiply_split_transposed<kHalfFeatures, kHead>(
        dphi, own_grad_o, s_hi, s_lo, lane, half * kHalfFeatures);
    const Sums sums = half_sums(phi_q, own_grad_o, dphi, z);
    const Terms terms = exchange_sums(sums, z, chunk);
#pragma unroll
    for (int n = 0; n < kHalfFeatures / 8; ++n) {
      dphi[n][0] = fmaf(terms.e_low, z[n].x, dphi[n][0]);
      dphi[n][1] = fmaf(terms.e_low, z[n].y, dphi[n][1]);
      dphi[n][2] = fmaf(terms.e_high, z[n].x, dphi[n][2]);
      dphi[n][3] = fmaf(terms.e_high, z[n].y, dphi[n][3]);
    }
#pragma unroll 1
    for (int j = 0; j <= block; ++j) {
      float dp[2][4] = {};
      multiply(dp, own_grad_o, v_tile, 16 * j, 0, lane);
#pragma unroll
      for (int n = 0; n < 2; ++n) {
        const int column = 16 * j + 8 * n + 2 * (lane & 3);
#pragma unroll
        for (int i = 0; i < 4; ++i)
          dp[n][i] = column + (i & 1) > (i < 2 ? low : high)
                         ? 0.0F
                         : dp[n][i] + (i < 2 ? terms.e_low : terms.e_high);
      }
      uint32_t weights[4];
      pack_operand(weights, dp);
      add_rows(dphi, weights, k_tile, 16 * j, first_unit, lane);
    }
    sync_pair(kSums + block);  // the other warp has read the sums
    write_grad_q(dphi, terms, chunk);
    store_scaled_rows<kHalfFeatures>(
        q_tile, row0, phi_q, terms.inverse_low, terms.inverse_high, lane, first_unit);
  }

  /// This warp's half of the features' share of denominators and of d o . numerator.
  __device__ __forceinline__ Sums half_sums(const Features& phi_q,
                                            const Values& own_grad_o,
                                            const GradFeatures& dphi,
                                            const Zs& z) const {
    Sums sums;
#pragma unroll
    for (int n = 0; n < kHalfFeatures / 8; ++n) {
      const float2 phi_low = unpack(phi_q[n / 2][2 * (n & 1)]),
                   phi_high = unpack(phi_q[n / 2][2 * (n & 1) + 1]);
      sums.den_low = fmaf(phi_low.x, z[n].x, fmaf(phi_low.y, z[n].y, sums.den_low));
      sums.den_high = fmaf(phi_high.x, z[n].x, fmaf(phi_high.y, z[n].y, sums.den_high));
      sums.inner_low = fmaf(phi_low.x, dphi[n][0], fmaf(phi_low.y, dphi[n][1], sums.inner_low));
      sums.inner_high = fmaf(phi_high.x, dphi[n][2], fmaf(phi_high.y, dphi[n][3], sums.inner_high));
    }
#pragma unroll 1
    for (int j = 0; j <= block; ++j) {
      float p[2][4] = {}, dp[2][4] = {};
      multiply(p, phi_q, k_tile, 16 * j, first_unit, lane);
      multiply(dp, own_grad_o, v_tile, 16 * j, 0, lane);
#pragma unroll
      for (int n = 0; n < 2; ++n) {
        const int column = 16 * j + 8 * n + 2 * (lane & 3);
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          if (column + (i & 1) > (i < 2 ? low : high)) p[n][i] = 0.0F;
        }
        sums.den_low += p[n][0] + p[n][1];
        sums.den_high += p[n][2] + p[n][3];
        sums.inner_low = fmaf(p[n][0], dp[n][0], fmaf(p[n][1], dp[n][1], sums.inner_low));
        sums.inner_high = fmaf(p[n][2], dp[n][2], fmaf(p[n][3], dp[n][3], sums.inner_high));
      }
    }
    sums.den_low = row_sum(sums.den_low), sums.den_high = row_sum(sums.den_high);
    sums.inner_low = row_sum(sums.inner_low), sums.inner_high = row_sum(sums.inner_high);
    return sums;
  }

  /// Adds the other warp's half; 1 / denominator and e, which is also stored for the columns. z is
  /// loaded once more: it would not stay in registers.
  __device__ __forceinline__ Terms exchange_sums(Sums sums, Zs& z, int chunk) const {
    // phi(q) lies in registers: the halves of both sums go through its place.
    const auto sums_at = [&](int row, int of_half) {
      return reinterpret_cast<float2*>(memory + (q_tile.at(row, of_half * kHalfUnits) - base));
    };
    __syncwarp();
    if ((lane & 3) == 0) {
      *sums_at(low, half) = {sums.den_low, sums.inner_low};
      *sums_at(high, half) = {sums.den_high, sums.inner_high};
    }
    load_z(z, chunk);
    sync_pair(kSums + block);
    const float2 other_low = *sums_at(low, 1 - half), other_high = *sums_at(high, 1 - half);
    const float den_low = (sums.den_low + other_low.x) + a.rule.added,
                den_high = (sums.den_high + other_high.x) + a.rule.added;
    const float inner_low = sums.inner_low + other_low.y,
                inner_high = sums.inner_high + other_high.y;
    Terms terms;
    terms.inverse_low = 1.0F / fmaxf(den_low, a.rule.floor);
    terms.inverse_high = 1.0F / fmaxf(den_high, a.rule.floor);
    terms.e_low = den_low < a.rule.floor ? 0.0F : -inner_low * terms.inverse_low;
    terms.e_high = den_high < a.rule.floor ? 0.0F : -inner_high * terms.inverse_high;
    if (half == 0 && (lane & 3) == 0) {
      e_shared[low] = terms.e_low;
      e_shared[high] = terms.e_high;
    }
    return terms;
  }

  /// d phi(q) of the warp's half of the features, through their place in shared memory.
  __device__ __forceinline__ void write_grad_q(const GradFeatures& dphi,
                                               const Terms& terms,
                                               int chunk) const {
    const int first = chunk * kChunk, valid = min(kChunk, shape.length - first);
    stage_rows<kHalfFeatures>(
        q_tile, row0, dphi, terms.inverse_low, terms.inverse_high, lane, first_unit);
    __syncwarp();
    bf16* const to = mutable_rows_of(a.grad_q, batch, head) + first * a.grad_q.token_stride;
#pragma unroll
    for (int i = 0; i < 16 * kHalfUnits / 32; ++i) {
      const int index = lane + 32 * i, row = row0 + index / kHalfUnits,
                unit = first_unit + index % kHalfUnits;
      const uint4 value = load_shared_16(q_tile.at(row, unit));
      if (row < valid && unit < units)
        *reinterpret_cast<uint4*>(to + row * a.grad_q.token_stride + unit * 8) = value;
    }
    __syncwarp();
  }

  /// Columns: d phi(k). Rows of the accumulators are keys, columns are queries.
  __device__ __forceinline__ void run_keys(int chunk) const {
    Values own_v;
#pragma unroll
    for (int step = 0; step < kHead / 16; ++step) v_tile.load_a(own_v[step], row0, 2 * step, lane);
    float dphi[kFeatures / 8][4];
#pragma unroll
    for (int n = 0; n < kFeatures / 8; ++n) {
      const float2 dz_pair = *reinterpret_cast<const float2*>(dz_shared + 8 * n + 2 * (lane & 3));
      dphi[n][0] = dphi[n][2] = dz_pair.x;
      dphi[n][1] = dphi[n][3] = dz_pair.y;
    }
    multiply_split_transposed<kFeatures, kHead>(dphi, own_v, ds_hi, ds_lo, lane);
    arrive_pair(kValuesRead + block);
#pragma unroll 1
    for (int i = block; i < kChunk / 16; ++i) {
      float dp[2][4];
#pragma unroll
      for (int n = 0; n < 2; ++n) {
        const float2 e_pair =
            *reinterpret_cast<const float2*>(e_shared + 16 * i + 8 * n + 2 * (lane & 3));
        dp[n][0] = dp[n][2] = e_pair.x;
        dp[n][1] = dp[n][3] = e_pair.y;
      }
      multiply(dp, own_v, grad_o_tile, 16 * i, 0, lane);
      clear_before(dp, 16 * i, low, lane);
      uint32_t weights[4];
      pack_operand(weights, dp);
      add_rows(dphi, weights, q_tile, 16 * i, 0, lane);
    }
    sync_pair(kKeysRead + block);
    stage_rows<kFeatures>(k_tile, row0, dphi, 1.0F, 1.0F, lane);
    write_gradient(a.grad_k, k_tile, chunk, units);
  }

  /// Columns: d v.
  __device__ __forceinline__ void run_values(int chunk) const {
    uint32_t own_phi_k[kFeatures / 16][4];
#pragma unroll
    for (int step = 0; step < kFeatures / 16; ++step)
      k_tile.load_a(own_phi_k[step], row0, 2 * step, lane);
    float dv[kHead / 8][4] = {};
#pragma unroll
    for (int step = 0; step < kFeatures / 16; ++step) {
      add_rows(dv, own_phi_k[step], ds_hi, 16 * step, 0, lane);
      add_rows(dv, own_phi_k[step], ds_lo, 16 * step, 0, lane);
    }
    arrive_pair(kKeysRead + block);
#pragma unroll 1
    for (int i = block; i < kChunk / 16; ++i) {
      float p[2][4] = {};
      multiply(p, own_phi_k, q_tile, 16 * i, 0, lane);
      clear_before(p, 16 * i, low, lane);
      uint32_t weights[4];
      pack_operand(weights, p);
      add_rows(dv, weights, grad_o_tile, 16 * i, 0, lane);
    }
    sync_pair(kValuesRead + block);
    stage_rows<kHead>(v_tile, row0, dv, 1.0F, 1.0F, lane);
    write_gradient(a.grad_v, v_tile, chunk, kHead / 8);
  }

  template <int kColumns>
  __device__ __forceinline__ void write_gradient(const View& gradient,
                                                 const Tile<kColumns>& tile,
                                                 int chunk,
                                                 int valid_units) const {
    const int first = chunk * kChunk, valid = min(kChunk, shape.length - first);
    write_rows<kColumns>(mutable_rows_of(gradient, batch, head) + first * gradient.token_stride,
                         gradient.token_stride,
                         tile,
                         row0,
                         row0,
                         valid,
                         valid_units,
                         lane);
  }

  /// dS += R^T d o and dz += R^T e for this warp's features; then the next chunk's loads begin.
  __device__ __forceinline__ void add_sums(int chunk) const {
    OwnSums c = {};
    float dz[4] = {};
#pragma unroll
    for (int step = 0; step < kChunk / 16; ++step) {
      uint32_t r[4];
      q_tile.load_a_transposed(r, 16 * step, 2 * warp, lane);
      add_rows(c, r, grad_o_tile, 16 * step, 0, lane);
      uint32_t e[2];  // hi in column 0, lo in column 1
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        const float2 pair =
            *reinterpret_cast<const float2*>(e_shared + 16 * step + 8 * i + 2 * (lane & 3));
        uint32_t hi, lo;
        split(pair.x, pair.y, hi, lo);
        e[i] = lane < 4 ? hi : lane < 8 ? lo : 0U;
      }
      mma(dz, r, e[0], e[1]);
    }
    __syncthreads();  // everybody has read this chunk, dS and dz
    if (chunk > 0) copy_chunk(chunk - 1);
    add_own_state(c);
    store_split_rows(ds_hi, ds_lo, 16 * warp, c, lane);
    if ((lane & 3) == 0) {
      dz_shared[16 * warp + lane / 4] += dz[0] + dz[1];
      dz_shared[16 * warp + lane / 4 + 8] += dz[2] + dz[3];
    }
  }

  /// Epilogue: the gradient of the initial state.
  __device__ __forceinline__ void write_initial_state() const {
    __syncwarp();
    OwnSums c = {};
    add_own_state(c);
    for_own_pairs(c, [&](int feature, int column, const float* pair) {
      *reinterpret_cast<float2*>(a.grad_initial_s + (int64_t{item} * features + feature) * kHead +
                                 column) = {pair[0], pair[1]};
    });
    const int feature = 16 * warp + lane;
    if (lane < 16 && feature < features)
      a.grad_initial_z[int64_t{item} * features + feature] = dz_shared[feature];
  }

  /// Calls body(feature, column, pair of values) for this warp's features of an [features, kHead]
  /// matrix.
  template <class Body>
  __device__ __forceinline__ void for_own_pairs(OwnSums& c, const Body& body) const {
#pragma unroll
    for (int n = 0; n < kHead / 8; ++n)
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        const int feature = 16 * warp + lane / 4 + 8 * i;
        if (feature < features) body(feature, 8 * n + 2 * (lane & 3), &c[n][2 * i]);
      }
  }
  __device__ __forceinline__ void add_own_state(OwnSums& c) const {
#pragma unroll
    for (int step = 0; step < kHead / 16; ++step) {
      uint32_t hi[4], lo[4];
      ds_hi.load_a(hi, 16 * warp, 2 * step, lane);
      ds_lo.load_a(lo, 16 * warp, 2 * step, lane);
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const float2 high_pair = unpack(hi[i]), low_pair = unpack(lo[i]);
        float* const pair = &c[2 * step + i / 2][2 * (i & 1)];
        pair[0] += high_pair.x + low_pair.x;
        pair[1] += high_pair.y + low_pair.y;
      }
    }
  }

  const CausalArguments& a;
  unsigned char* const memory;
  const uint32_t base = shared_address(memory);
  const Tile<kFeatures> q_tile{base + Memory::kQ}, k_tile{base + Memory::kK};
  const Tile<kHead> v_tile{base + Memory::kV}, grad_o_tile{base + Memory::kGradO};
  const Tile<kHead> s_hi{base + Memory::kState},
      s_lo{base + Memory::kState + kFeatures * kHead * 2};
  const Tile<kHead> ds_hi{base + Memory::kGradState},
      ds_lo{base + Memory::kGradState + kFeatures * kHead * 2};
  float* const dz_shared = reinterpret_cast<float*>(memory + Memory::kDz);
  float* const e_shared = reinterpret_cast<float*>(memory + Memory::kE);

  const Shape& shape = a.shape;
  const int item = blockIdx.x, batch = item / shape.query_heads, head = item % shape.query_heads;
  const int group = shape.query_heads / shape.state_heads, state_head = head / group;
  const int tid = threadIdx.x, lane = tid & 31, warp = tid >> 5, half = warp >> 2;
  const int block = half == 0 ? warp : 7 - warp,
            row0 = block * 16;  // every scheduler has long and short rows
  const int low = row0 + lane / 4, high = low + 8, first_unit = half * kHalfUnits;
  const int features = shape.feature_size, units = features / 8;

  const bf16* const q = rows_of(a.q, batch, head);
  const bf16* const k = rows_of(a.k, batch, state_head / (shape.state_heads / shape.key_heads));
  const bf16* const v = rows_of(a.v, batch, state_head / (shape.state_heads / shape.value_heads));
  const bf16* const grad_o = rows_of(a.grad_o, batch, head);
};

}  // namespace t2r::kernels::cuda::features
