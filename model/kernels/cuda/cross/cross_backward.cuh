#pragma once

#include "model/kernels/cuda/cross/cross_forward.cuh"

namespace t2r::kernels::cuda {

/// Shared memory in bytes from its start. A stage has q and d o, or k and v.
template <int kHead, int kFeatures, bool kMap>
struct CrossBackwardMemory {
  static constexpr int kInput = kMap ? kHead : kFeatures;  // columns of q and k
  static constexpr bool kHasGradO = true;
  static constexpr int kSecond = kCrossRows * kInput * 2;
  static constexpr int kStage = kSecond + kCrossRows * kHead * 2;
  static constexpr int kWeight = 2 * kStage;
  static constexpr int kState =
      kWeight + (kMap ? kFeatures * kHead * 2 : 0);  // S and z, then their gradients
  static constexpr int kBias = kState + SharedState<kHead, kFeatures>::kRecordBytes;
  static constexpr int kE = kBias + 4 * kFeatures;
  static constexpr int kPhi =
      kE + 4 * kCrossRows;  // of the source, or R = phi(q) / denominator; d q leaves through it
  static constexpr int kGradY = kPhi + kCrossRows * kFeatures * 2;
  static constexpr int kBytes = kGradY + (kMap ? kCrossRows * kFeatures * 2 : 0);
  static constexpr int kShare = kPhi;  // of a cluster's sums: the features have served
  static constexpr int kClusterBytes =
      max_of(kBytes, kShare + SharedState<kHead, kFeatures>::kShareBytes);
  static constexpr int kBlocks = blocks_with(kClusterBytes);
};

/// A block of threads of cross_backward_kernel. Warps: z, dz and both d b live in one warp each.
///
/// Barriers, per chunk of queries: R, e and d y are in shared memory | the sums have them. Per
/// chunk of the source, with a map: d y is in shared memory | dW has it. Without a map every warp
/// walks its own rows of the source. Where a state is loaded: nobody reads the one before | it has
/// come.
template <int kHead, int kFeatures, bool kMap>
class CrossBackward
    : CrossWalk<kHead, kFeatures, kMap, CrossBackwardMemory<kHead, kFeatures, kMap>> {
  using Walk = CrossWalk<kHead, kFeatures, kMap, CrossBackwardMemory<kHead, kFeatures, kMap>>;
  using typename Walk::Features, typename Walk::Memory, typename Walk::Product;
  using Walk::a, Walk::part, Walk::memory, Walk::base, Walk::bias, Walk::weight, Walk::shape,
      Walk::block, Walk::state, Walk::lane, Walk::warp, Walk::row0, Walk::low, Walk::high,
      Walk::features, Walk::input_units, Walk::group, Walk::step;
  using Walk::kInput, Walk::kSteps;

 public:
  __device__ __forceinline__ CrossBackward(const CrossArguments& arguments,
                                           CrossPart launch,
                                           unsigned char* shared)
      : Walk(arguments,
             launch,
             shared,
             /*sums_first=*/launch == CrossPart::kWhole && arguments.plan.sums_again,
             /*sources_last=*/launch != CrossPart::kQueries),
        sums_again(launch == CrossPart::kWhole && arguments.plan.sums_again),
        ds(warp),
        dw(warp) {}

  __device__ __forceinline__ void run() {
    this->load_map();
#pragma unroll 1
    for (int i = 0; i < 2; ++i) this->copy_next();
    wait_copies<1>();
    __syncthreads();
    for (int batch = block.batch; batch < block.batch_end; ++batch) {
      if (sums_again) {
        clear_sums();
        this->sum_source(ds, sums, batch, phi_tile.base);
        state.add_up(ds, sums, block.segments, block.rank);
      } else {
        load_state(part == CrossPart::kSource ? a.grad_state : a.state, batch);
      }
      if (part != CrossPart::kSource) {
        clear_sums();
        for (int member = 0; member < group; ++member) run_queries(batch, member);
        if (part == CrossPart::kQueries) {
          write_share<kHead>(
              a.sums + block.part * a.plan.sums_floats, ds, sums, warp == kZWarp, features, lane);
          break;
        }
        state.add_up(ds, sums, block.segments, block.rank);
      }
      run_source(batch);
    }
    if constexpr (kMap) write_map_gradient();
  }

 private:
  static constexpr int kZWarp = 0, kQueryBiasWarp = 1, kSourceBiasWarp = 2;
  using GradFeatures = float[kFeatures / 8][4];

  __device__ __forceinline__ void clear_sums() {
    ds.clear();
    if (warp == kZWarp) sums.clear();
  }

  __device__ __forceinline__ void load_state(const unsigned char* records, int batch) const {
    __syncthreads();
    state.load(records + (int64_t{batch} * shape.state_heads + block.head) * a.plan.record_bytes);
    commit_copies();
    wait_copies<0>();
    __syncthreads();
  }

  /// d q of the block's chunks of one head's queries; adds to dS, dz, dW and d b.
  __device__ __forceinline__ void run_queries(int batch, int member) {
    bf16* const grad_q = mutable_rows_of(a.grad_q, batch, block.head * group + member);
    for (int chunk = block.query_begin; chunk < block.query_end; ++chunk, ++step) {
      const Tile<kInput> q_tile{this->stage_of(step)};
      const Tile<kHead> grad_o_tile{this->stage_of(step) + Memory::kSecond};
      const int64_t first = int64_t{chunk} * kCrossRows;
      const int valid = min(kCrossRows, shape.length - static_cast<int>(first)),
                rows = rounded_rows(valid);
      this->forget_addresses();
      wait_copies<1>();
      __syncwarp();
      if (row0 < rows)
        query_rows(q_tile, grad_o_tile, grad_q + first * a.grad_q.token_stride, valid);
      __syncthreads();
      add_rows(ds, phi_tile, grad_o_tile, rows, lane);
      if (warp == kZWarp) {
        add_weighted_rows(sums, phi_tile, rows, lane, [&](int row) {
          if (lane >= 8) return 0u;
          uint32_t hi, lo;
          split(e_shared[row], e_shared[row + 1], hi, lo);
          return lane < 4 ? hi : lo;
        });
      }
      add_map_gradient(q_tile, kQueryBiasWarp, rows);
      __syncthreads();
      this->copy_next();
    }
  }

  /// d k and d v of the block's chunks of the source; adds to dW and d b.
  __device__ __forceinline__ void run_source(int batch) {
    const unsigned char* const mask = this->mask_of(batch);
    bf16* const grad_k = mutable_rows_of(a.grad_k, batch, block.head);
    bf16* const grad_v = mutable_rows_of(a.grad_v, batch, block.head);
    for (int chunk = block.source_begin; chunk < block.source_end; ++chunk, ++step) {
      const Tile<kInput> k_tile{this->stage_of(step)};
      const int64_t first = int64_t{chunk} * kCrossRows;
      const int valid = min(kCrossRows, a.source_length - static_cast<int>(first)),
                rows = rounded_rows(valid);
      this->forget_addresses();
      wait_copies<1>();
      __syncwarp();
      if (row0 < rows) {
        const auto exists = [&](int row) {
          return row < valid && (mask == nullptr || mask[first + row] != 0);
        };
        source_rows(grad_k + first * a.grad_k.token_stride,
                    grad_v + first * a.grad_v.token_stride,
                    exists(low),
                    exists(high),
                    valid);
      }
      if constexpr (kMap) {
        __syncthreads();
        add_map_gradient(k_tile, kSourceBiasWarp, rows);
        __syncthreads();
      }
      this->copy_next();
    }
  }

  /// e, d q, R and the gradient of the map's output for the own rows of a chunk of queries.
  __device__ __forceinline__ void query_rows(const Tile<kInput>& q_tile,
                                             const Tile<kHead>& grad_o_tile,
                                             bf16* grad_q,
                                             int valid) const {
    Features phi;
    if constexpr (kMap) {
      float y[kFeatures / 8][4];
      project<kHead, kFeatures>(y, q_tile, weight, row0, lane);
      activate<kFeatures>(phi, y, bias, a.rule.scale, low < valid, high < valid, lane);
    } else {
#pragma unroll
      for (int i = 0; i < kSteps; ++i) q_tile.load_a(phi[i], row0, 2 * i, lane);
    }
    GradFeatures dphi = {};  // S d o, then d phi(q) times the denominator
    {
      uint32_t own_grad_o[kHead / 16][4];
#pragma unroll
      for (int i = 0; i < kHead / 16; ++i) grad_o_tile.load_a(own_grad_o[i], row0, 2 * i, lane);
      multiply_split_transposed<kFeatures, kHead>(dphi, own_grad_o, state.hi(), state.lo(), lane);
    }
    float inner_low = 0.0F, inner_high = 0.0F;  // d o . numerator
#pragma unroll
    for (int n = 0; n < kFeatures / 8; ++n) {
      const float2 phi_low = unpack(phi[n / 2][2 * (n & 1)]),
                   phi_high = unpack(phi[n / 2][2 * (n & 1) + 1]);
      inner_low = fmaf(phi_low.x, dphi[n][0], fmaf(phi_low.y, dphi[n][1], inner_low));
      inner_high = fmaf(phi_high.x, dphi[n][2], fmaf(phi_high.y, dphi[n][3], inner_high));
    }
    const float2 n_of = inner_with_z<kFeatures>(phi, state.z, lane);
    const Denominator den_low(n_of.x, a.rule, a.absolute), den_high(n_of.y, a.rule, a.absolute);
    const float inverse_low = 1.0F / den_low.value, inverse_high = 1.0F / den_high.value;
    const float e_low = -row_sum(inner_low) * inverse_low * den_low.slope,
                e_high = -row_sum(inner_high) * inverse_high * den_high.slope;
    if ((lane & 3) == 0) {
      e_shared[low] = e_low;
      e_shared[high] = e_high;
    }
#pragma unroll
    for (int n = 0; n < kFeatures / 8; ++n) {
      const float2 z_pair = *reinterpret_cast<const float2*>(state.z + 8 * n + 2 * (lane & 3));
      dphi[n][0] = fmaf(e_low, z_pair.x, dphi[n][0]);
      dphi[n][1] = fmaf(e_low, z_pair.y, dphi[n][1]);
      dphi[n][2] = fmaf(e_high, z_pair.x, dphi[n][2]);
      dphi[n][3] = fmaf(e_high, z_pair.y, dphi[n][3]);
    }
    write_grad_q(grad_q, phi, dphi, inverse_low, inverse_high, valid);
    store_scaled_rows<kFeatures>(phi_tile, row0, phi, inverse_low, inverse_high, lane);
  }

  /// Epilogue of query_rows(): d q leaves through the own rows of R's tile.
  __device__ __forceinline__ void write_grad_q(bf16* grad_q,
                                               const Features& phi,
                                               const GradFeatures& dphi,
                                               float inverse_low,
                                               float inverse_high,
                                               int valid) const {
    if constexpr (kMap) {
      Features grad_y;
      activate_back<kFeatures>(
          grad_y, phi, dphi, inverse_low * a.rule.scale, inverse_high * a.rule.scale);
      store_rows<kFeatures>(grad_y_tile, row0, grad_y, lane);
      float grad[kHead / 8][4];
      project_back<kHead, kFeatures>(grad, grad_y, weight, lane);
      constexpr int kPiece =
          kHead < kFeatures ? kHead : kFeatures;  // columns that the own rows of R have room for
      const Tile<kPiece> scratch{phi_tile.base + row0 * kFeatures * 2};
#pragma unroll
      for (int piece = 0; piece < kHead / kPiece; ++piece) {
        stage_rows<kPiece>(
            scratch,
            0,
            reinterpret_cast<const float(&)[kPiece / 8][4]>(grad[piece * kPiece / 8]),
            1.0F,
            1.0F,
            lane);
        write_rows<kPiece>(grad_q + piece * kPiece,
                           a.grad_q.token_stride,
                           scratch,
                           0,
                           row0,
                           valid,
                           kPiece / 8,
                           lane);
      }
    } else {
      stage_rows<kFeatures>(phi_tile, row0, dphi, inverse_low, inverse_high, lane);
      write_rows<kFeatures>(
          grad_q, a.grad_q.token_stride, phi_tile, row0, row0, valid, input_units, lane);
    }
  }

  /// d k, d v and the gradient of the map's output for the own rows of a chunk of the source; they
  /// leave through the rows of v.
  __device__ __forceinline__ void source_rows(
      bf16* grad_k, bf16* grad_v, bool low_exists, bool high_exists, int valid) const {
    const Tile<kInput> k_tile{this->stage_of(step)};
    const Tile<kHead> v_tile{this->stage_of(step) + Memory::kSecond};
    Features phi;
    if constexpr (kMap) {
      source_features<kHead, kFeatures>(
          phi, k_tile, weight, bias, low_exists, high_exists, row0, lane);
    } else {
#pragma unroll
      for (int i = 0; i < kSteps; ++i) k_tile.load_a(phi[i], row0, 2 * i, lane);
    }
    GradFeatures dphi;
#pragma unroll
    for (int n = 0; n < kFeatures / 8; ++n) {
      const float2 dz_pair = *reinterpret_cast<const float2*>(state.z + 8 * n + 2 * (lane & 3));
      dphi[n][0] = dphi[n][2] = dz_pair.x;
      dphi[n][1] = dphi[n][3] = dz_pair.y;
    }
    {
      uint32_t own_v[kHead / 16][4];
#pragma unroll
      for (int i = 0; i < kHead / 16; ++i) v_tile.load_a(own_v[i], row0, 2 * i, lane);
      multiply_split_transposed<kFeatures, kHead>(dphi, own_v, state.hi(), state.lo(), lane);
    }
    {
      float grad[kHead / 8][4] = {};
      multiply_split<kSteps, kHead>(grad, phi, state.hi(), state.lo(), lane);
      __syncwarp();
      stage_rows<kHead>(v_tile, row0, grad, 1.0F, 1.0F, lane);
      write_rows<kHead>(grad_v, a.grad_v.token_stride, v_tile, row0, row0, valid, kHead / 8, lane);
    }
    if constexpr (kMap) {
      Features grad_y;
      activate_back<kFeatures>(grad_y, phi, dphi, 1.0F, 1.0F);
      store_rows<kFeatures>(grad_y_tile, row0, grad_y, lane);
      float grad[kHead / 8][4];
      project_back<kHead, kFeatures>(grad, grad_y, weight, lane);
      stage_rows<kHead>(v_tile, row0, grad, 1.0F, 1.0F, lane);
      write_rows<kHead>(grad_k, a.grad_k.token_stride, v_tile, row0, row0, valid, kHead / 8, lane);
    } else {
      stage_rows<kFeatures>(
          k_tile, row0, dphi, low_exists ? 1.0F : 0.0F, high_exists ? 1.0F : 0.0F, lane);
      write_rows<kFeatures>(
          grad_k, a.grad_k.token_stride, k_tile, row0, row0, valid, input_units, lane);
    }
  }

  /// dW += d y^T x, and one warp's d b += d y, over a chunk's rows.
  __device__ __forceinline__ void add_map_gradient(const Tile<kInput>& input,
                                                   int bias_warp,
                                                   int rows) {
    if constexpr (kMap) {
      add_rows(dw, grad_y_tile, input, rows, lane);
      if (warp == bias_warp) {
        const uint32_t ones = ones_column(lane);
        add_weighted_rows(sums, grad_y_tile, rows, lane, [ones](int) { return ones; });
      }
    }
  }

  /// Epilogue: the block's part of dW and d b.
  __device__ __forceinline__ void write_map_gradient() {
    __syncthreads();
    if (warp == kSourceBiasWarp)
      sums.for_each(lane, [&](int feature, float sum) { bias[feature] = sum; });
    __syncthreads();
    float* const map_part = (part == CrossPart::kSource ? a.source_parts : a.query_parts) +
                            block.part * a.plan.sums_floats;
    const float unscale = 1.0F / a.rule.scale;
    write_share<kHead>(map_part, dw, sums, false, features, lane);
    if (warp == kQueryBiasWarp) {
      sums.for_each(lane, [&](int feature, float sum) {
        if (feature < features)
          map_part[features * kHead + feature] = fmaf(sum, unscale, bias[feature]);
      });
    }
  }

  const bool sums_again;  // S and z are added up again instead of read
  float* const e_shared = reinterpret_cast<float*>(memory + Memory::kE);
  const Tile<kFeatures> phi_tile{base + Memory::kPhi}, grad_y_tile{base + Memory::kGradY};
  Product ds, dw;                      // the first is S, too
  WeightedColumnSums<kFeatures> sums;  // z and dz, or d b of the queries or the source
};

/// Gradients of cross_forward_kernel. Queries: with n_t = phi(q_t) . z, D_t the denominator and
/// D'_t = d D_t / d n_t (0 on the floor, else the sign of n_t, or 1):
///
///   e_t = -(d o_t . o_t) D'_t
///   d phi(q)_t = (S d o_t + e_t z) / D_t
///   dS = sum of phi(q_t) d o_t^T / D_t,  dz = sum of phi(q_t) e_t / D_t
///
/// d o . o is recomputed as phi(q) . (S d o) / D, from the very product that it must cancel
/// against, as in causal_backward_kernel.
/// Source: d phi(k)_s = dS v_s + dz, d v_s = dS^T phi(k)_s, both 0 for padding.
template <int kHead, int kFeatures, bool kMap>
__global__ void __launch_bounds__(kCrossThreads,
                                  (CrossBackwardMemory<kHead, kFeatures, kMap>::kBlocks))
    cross_backward_kernel(const __grid_constant__ CrossArguments a, CrossPart part) {
  extern __shared__ __align__(128) unsigned char memory[];
  wait_for_earlier_kernels();
  CrossBackward<kHead, kFeatures, kMap>(a, part, memory).run();
}

}  // namespace t2r::kernels::cuda
