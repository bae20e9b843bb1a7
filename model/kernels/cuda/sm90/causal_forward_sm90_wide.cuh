#pragma once

// The forward kernel for head size 128 on Hopper. Symbols as in causal_forward_sm90.cuh; `group` is
// a warpgroup, whose half of the head's columns is 64 wide; a turn is a chunk of the segment.
//
// Barriers: of a stage (mbarrier), its tiles have come. Of the block, per chunk: the state before
// it is in shared memory and the chunk before has been read | with a map, features are in shared
// memory.

#include "model/kernels/cuda/sm90/causal_rows_sm90.cuh"

namespace t2r::kernels::cuda::sm90 {

constexpr int kWideHead = 128, kHalfHead = 64, kWideThreads = 256;

/// Shared memory of the forward kernel for head size 128. Tensors lie as two tiles of 64 columns,
/// one for each warpgroup.
template <int kFeatures, bool kMap>
struct WideForwardMemory {
  static constexpr int kTile = kWalkTokens * kHalfHead * 2;
  static constexpr int kInputTiles = kMap ? 2 : 1;
  static constexpr int kInputTile = kMap ? kTile : kWalkTokens * kFeatures * 2;
  static constexpr int kQ = 0;
  static constexpr int kK = kQ + kInputTiles * kInputTile;
  static constexpr int kV = kK + kInputTiles * kInputTile;
  static constexpr int kStage = kV + 2 * kTile;
  static constexpr int kWeightTile = kMap ? kFeatures * kHalfHead * 2 : 0;
  static constexpr int kPhiTile = kMap ? kWalkTokens * kFeatures * 2 : 0;
  static constexpr int kScratchBytes = kMap ? 0 : 2 * kTile;  // with a map, the tiles of q serve
  static constexpr int kStateStride = round_up(kRecordBytes<kWideHead, kFeatures>, 1024);
  static constexpr int kRest =
      2 * kWeightTile + 2 * kPhiTile + kScratchBytes + 2 * kStateStride + 4 * kFeatures + 64 + 1024;
  static constexpr int kStages =
      (227 * 1024 - kRest) / kStage < 4 ? (227 * 1024 - kRest) / kStage : 4;
  static constexpr int kWeight = kStages * kStage;
  static constexpr int kPhiK = kWeight + 2 * kWeightTile;
  static constexpr int kPhiQ = kPhiK + kPhiTile;
  static constexpr int kScratch = kPhiQ + kPhiTile;
  static constexpr int kState = kScratch + kScratchBytes;
  static constexpr int kBias = kState + 2 * kStateStride;
  static constexpr int kBarriers = kBias + 4 * kFeatures;
  static constexpr int kBytes = kBarriers + 8 * kStages + 1024;
  static_assert(kStages >= 2 && kBytes <= 227 * 1024);
};

/// A block of threads of causal_forward_wide_kernel. A warpgroup holds its half of S^T
/// ([64][kFeatures]), and z in every row; a lane's rows are columns of v.
template <int kFeatures, bool kMap, bool kSumsOnly>
class WideForward {
 public:
  __device__ __forceinline__ WideForward(const CausalArguments& arguments,
                                         const TensorMaps& tensor_maps,
                                         unsigned char* shared)
      : a(arguments), maps(tensor_maps), memory(shared) {}

  __device__ __forceinline__ void run() {
    start();
    publish_state(0);
    for (int chunk = chunk_begin; chunk < chunk_end; ++chunk) {
      const int slot = (chunk - chunk_begin) % Memory::kStages;
      if (chunk == chunk_begin) wait_copies<0>();
      if (lane == 0) wait_stores_read();
      make_visible_to_wgmma();
      __syncthreads();  // the state before the chunk is here; everybody is done with the one before
      copy_chunk(chunk + Memory::kStages - 1);
      wait_barrier(base + Memory::kBarriers + 8 * slot,
                   (chunk - chunk_begin) / Memory::kStages & 1);
      const uint32_t stage = base + slot * Memory::kStage;
      if constexpr (kMap) {
        make_features(chunk, stage);
        __syncthreads();
      }
      if constexpr (kSumsOnly) {
        begin_products();
        update_state(stage);
        wait_products<0>();
        settle(s);
        settle(z);
      } else {
        save_state(chunk);
        write_outputs(chunk, stage);
      }
    }
    finish();
  }

 private:
  using Memory = WideForwardMemory<kFeatures, kMap>;
  static constexpr int kSteps = kFeatures / 16;

  __device__ __forceinline__ Tile<kHalfHead> weight(int half) const {
    return {base + Memory::kWeight + half * Memory::kWeightTile};
  }
  __device__ __forceinline__ Tile<kFeatures> phi_k_of(uint32_t stage) const {
    return {kMap ? base + Memory::kPhiK : stage + Memory::kK};
  }
  __device__ __forceinline__ Tile<kFeatures> phi_q_of(uint32_t stage) const {
    return {kMap ? base + Memory::kPhiQ : stage + Memory::kQ};
  }
  __device__ __forceinline__ Tile<kHalfHead> v_half(uint32_t stage) const {
    return {stage + Memory::kV + group * Memory::kTile};
  }
  /// Where the state before a chunk lies, as a byte of shared memory; there are two.
  __device__ __forceinline__ int record_of(int turn) const {
    return Memory::kState + (turn & 1) * Memory::kStateStride;
  }
  /// z, and behind it, for this kernel, the mean m.
  __device__ __forceinline__ float* z_of(int turn) const {
    return reinterpret_cast<float*>(memory + record_of(turn) + 2 * kFeatures * kWideHead);
  }

  /// By one thread: the loads of a chunk's tiles, if there is one.
  __device__ __forceinline__ void copy_chunk(int chunk) const {
    if (tid != 0 || chunk >= chunk_end) return;
    const int slot = (chunk - chunk_begin) % Memory::kStages, token = chunk * kWalkTokens;
    const uint32_t stage = base + slot * Memory::kStage,
                   barrier = base + Memory::kBarriers + 8 * slot;
    expect_bytes(barrier, kSumsOnly ? Memory::kStage - Memory::kK : Memory::kStage);
#pragma unroll
    for (int i = 0; i < Memory::kInputTiles; ++i)
      load_tile(stage + Memory::kK + i * Memory::kInputTile,
                maps.k,
                barrier,
                64 * i,
                token,
                key_head,
                batch);
    if constexpr (!kSumsOnly) {
#pragma unroll
      for (int i = 0; i < Memory::kInputTiles; ++i)
        load_tile(stage + Memory::kQ + i * Memory::kInputTile,
                  maps.q,
                  barrier,
                  64 * i,
                  token,
                  head,
                  batch);
    }
#pragma unroll
    for (int i = 0; i < 2; ++i)
      load_tile(stage + Memory::kV + i * Memory::kTile,
                maps.v,
                barrier,
                64 * i,
                token,
                value_head,
                batch);
  }

  /// Prologue: the first loads begin; S and z before the segment's first token.
  __device__ __forceinline__ void start() {
    if (tid == 0) {
      for (int slot = 0; slot < Memory::kStages; ++slot)
        init_barrier(base + Memory::kBarriers + 8 * slot);
      publish_barriers();
    }
    wait_for_earlier_kernels();
    if (tid == 0) {
      for (int ahead = 0; ahead < Memory::kStages - 1; ++ahead) copy_chunk(chunk_begin + ahead);
    }
    if constexpr (kMap) {
      copy_weight_async<kWideHead, kFeatures, kWideThreads>(
          [&](int row, int unit) { return weight(unit / 8).at(row, unit % 8); },
          a.weight,
          state_head,
          features);
      load_bias<kFeatures, kWideThreads>(bias, a.bias, state_head, features);
    }
    commit_copies();
    if constexpr (!kSumsOnly) {
      const StartState from =
          start_state<kWideHead>(a, a.initial_s, a.initial_z, item, segment, batch, state_head);
      if (from.s != nullptr) {
#pragma unroll
        for (int n = 0; n < kFeatures / 8; ++n)
#pragma unroll
          for (int i = 0; i < 4; ++i) {
            const int feature = n * 8 + 2 * (lane & 3) + (i & 1);
            if (feature >= features) continue;
            s[n][i] = from.s[feature * kWideHead + column_low + (i < 2 ? 0 : 8)];
            z[n][i] = from.z[feature];
          }
      }
    }
  }

  /// The state before the next chunk as S - z m^T, z and m (as head size 64's store_centred()).
  __device__ __forceinline__ void publish_state(int turn) const {
    if constexpr (!kSumsOnly) {
      float sum_low = 0.0F, sum_high = 0.0F, sum_z = 0.0F;
#pragma unroll
      for (int n = 0; n < kFeatures / 8; ++n)
#pragma unroll
        for (int i = 0; i < 2; ++i) {
          const bool minus = !kMap && z[n][i] < 0.0F;  // given features may have any sign
          sum_low += minus ? -s[n][i] : s[n][i];
          sum_high += minus ? -s[n][i + 2] : s[n][i + 2];
          sum_z += minus ? -z[n][i] : z[n][i];
        }
      sum_z = row_sum(sum_z);
      const float inverse = sum_z > 0.0F ? 1.0F / sum_z : 0.0F;
      const float mean_low = row_sum(sum_low) * inverse, mean_high = row_sum(sum_high) * inverse;
      const Tile<kFeatures> centred{base + record_of(turn)};
#pragma unroll
      for (int step = 0; step < kSteps; ++step) {
        uint32_t packed[4];
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          const int n = 2 * step + i / 2, j = 2 * (i & 1);
          const float mean = (i & 1) == 0 ? mean_low : mean_high;
          packed[i] = pack(fmaf(-mean, z[n][0], s[n][j]), fmaf(-mean, z[n][1], s[n][j + 1]));
        }
        centred.store_a(packed, group * kHalfHead + row0, 2 * step, lane);
      }
      float* const z_to = z_of(turn);
      if (warp == 0 && lane < 4) {
#pragma unroll
        for (int n = 0; n < kFeatures / 8; ++n)
          reinterpret_cast<float2*>(z_to)[n * 4 + lane] = {z[n][0], z[n][1]};
      }
      if ((lane & 3) == 0) {
        z_to[kFeatures + column_low] = mean_low;
        z_to[kFeatures + column_low + 8] = mean_high;
      }
    }
  }

  /// The first warpgroup maps the keys, the second the queries.
  __device__ __forceinline__ void make_features(int chunk, uint32_t stage) const {
    if (group != 0 && kSumsOnly) return;
    const int valid = min(kWalkTokens, shape.length - chunk * kWalkTokens);
    const uint32_t input = stage + (group == 0 ? Memory::kK : Memory::kQ);
    float y[kFeatures / 8][4];
    begin_products();
#pragma unroll
    for (int half = 0; half < 2; ++half)
#pragma unroll
      for (int step = 0; step < 4; ++step)
        product<Major::kK, Major::kK>(
            y,
            operand<Major::kK>(Tile<kHalfHead>{input + half * Memory::kTile}, 0, step),
            operand<Major::kK>(weight(half), 0, step),
            half + step > 0);
    commit_products();
    wait_products<0>();
    settle(y);
    uint32_t phi[kSteps][4];
    activate<kFeatures>(
        phi, y, bias, group == 0 ? 1.0F : a.rule.scale, low < valid, high < valid, lane);
    store_rows<kFeatures>(group == 0 ? phi_k_of(stage) : phi_q_of(stage), row0, phi, lane);
    make_visible_to_wgmma();
  }

  /// Starts S += v^T phi(k), z += phi(k) in every row.
  __device__ __forceinline__ void update_state(uint32_t stage) {
#pragma unroll
    for (int step = 0; step < kWalkTokens / 16; ++step)
      product<Major::kMN, Major::kMN>(s,
                                      operand<Major::kMN>(v_half(stage), 0, step),
                                      operand<Major::kMN>(phi_k_of(stage), 0, step),
                                      true);
    constexpr uint32_t kOnes = 0x3f803f80u;
    const uint32_t ones[4] = {kOnes, kOnes, kOnes, kOnes};
#pragma unroll
    for (int step = 0; step < kWalkTokens / 16; ++step)
      product<Major::kMN>(z, ones, operand<Major::kMN>(phi_k_of(stage), 0, step), true);
    commit_products();
  }

  /// For the backward pass.
  __device__ __forceinline__ void save_state(int chunk) const {
    if (a.states != nullptr && (chunk > 0 || a.initial_s != nullptr) && tid == 0) {
      store_bytes(a.states + (int64_t{item} * a.plan.chunks + chunk) * a.plan.state_record_bytes,
                  base + record_of(chunk - chunk_begin),
                  kRecordBytes<kWideHead, kFeatures>);
      commit_stores();
    }
  }

  /// o of the chunk and this warpgroup's columns; S and z behind it, published for the next chunk.
  __device__ __forceinline__ void write_outputs(int chunk, uint32_t stage) {
    const int turn = chunk - chunk_begin;
    uint32_t phi_q[kSteps][4];
#pragma unroll
    for (int step = 0; step < kSteps; ++step)
      phi_q_of(stage).load_a(phi_q[step], row0, 2 * step, lane);
    float p[8][4], num[8][4];
    const Tile<kFeatures> centred{base + record_of(turn)};
    begin_products();
#pragma unroll
    for (int step = 0; step < kSteps; ++step)
      product<Major::kK>(p, phi_q[step], operand<Major::kK>(phi_k_of(stage), 0, step), step > 0);
    commit_products();
#pragma unroll
    for (int step = 0; step < kSteps; ++step)
      product<Major::kK>(
          num, phi_q[step], operand<Major::kK>(centred, group * kHalfHead, step), step > 0);
    commit_products();
    update_state(stage);
    OfRows before;  // of the denominator, what comes from before the chunk
    add_dots<kFeatures>(before, phi_q, z_of(turn), lane);
    before = row_sums(before);
    wait_products<2>();
    settle(p);
    const OfRows den = multiply_weights(stage, p, num);
    const float scale_low =
        1.0F / fmaxf(row_sum(den.low) + before.low + a.rule.added, a.rule.floor);
    const float scale_high =
        1.0F / fmaxf(row_sum(den.high) + before.high + a.rule.added, a.rule.floor);
    wait_products<0>();
    settle(num);
    settle(s);
    settle(z);
    const float* const mean_shared = z_of(turn) + kFeatures + group * kHalfHead;
#pragma unroll
    for (int n = 0; n < 8; ++n) {  // what the state's centring has left out
      const float2 mean = *reinterpret_cast<const float2*>(mean_shared + 8 * n + 2 * (lane & 3));
      num[n][0] = fmaf(before.low, mean.x, num[n][0]);
      num[n][1] = fmaf(before.low, mean.y, num[n][1]);
      num[n][2] = fmaf(before.high, mean.x, num[n][2]);
      num[n][3] = fmaf(before.high, mean.y, num[n][3]);
    }
    if (chunk + 1 < chunk_end) publish_state(turn + 1);
    const Tile<kHalfHead> scratch{(kMap ? stage + Memory::kQ : base + Memory::kScratch) +
                                  group * Memory::kTile};
    stage_rows<kHalfHead>(scratch, row0, num, scale_low, scale_high, lane);
    send_rows(maps.o, scratch, row0, group * kHalfHead, chunk * kWalkTokens, head, batch, lane);
  }

  /// Starts num += p v without what lies above the diagonal; returns this lane's sums of p.
  __device__ __forceinline__ OfRows multiply_weights(uint32_t stage,
                                                     float (&p)[8][4],
                                                     float (&num)[8][4]) const {
    OfRows den;
    uint32_t weights[4][4];
#pragma unroll
    for (int n = 0; n < 8; ++n) {
#pragma unroll
      for (int i = 0; i < 4; ++i)  // (PairMasks is slower here)
        if (!is_seen(n, i, low, lane)) p[n][i] = 0.0F;
      weights[n / 2][2 * (n & 1)] = pack(p[n][0], p[n][1]);
      weights[n / 2][2 * (n & 1) + 1] = pack(p[n][2], p[n][3]);
      den.low += p[n][0] + p[n][1];
      den.high += p[n][2] + p[n][3];
    }
    begin_products();
#pragma unroll
    for (int step = 0; step < 4; ++step)
      product<Major::kMN>(num, weights[step], operand<Major::kMN>(v_half(stage), 0, step), true);
    commit_products();
    return den;
  }

  /// Epilogue: the segment's sums, or the state behind the last token.
  __device__ __forceinline__ void finish() const {
    if (lane == 0) wait_stores_read();
    float *to_s = nullptr, *to_z = nullptr;
    if constexpr (kSumsOnly) {
      to_s = a.sums + (int64_t{item} * a.plan.segments + segment) * a.plan.sums_floats;
      to_z = to_s + features * kWideHead;
    } else if (a.final_s != nullptr && segment + 1 == a.plan.segments &&
               head % (shape.query_heads / shape.state_heads) == 0) {
      const int64_t state = int64_t{batch} * shape.state_heads + state_head;
      to_s = a.final_s + state * features * kWideHead;
      to_z = a.final_z + state * features;
    }
    if (to_s == nullptr) return;
#pragma unroll
    for (int n = 0; n < kFeatures / 8; ++n)
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const int feature = n * 8 + 2 * (lane & 3) + (i & 1);
        if (feature >= features) continue;
        to_s[feature * kWideHead + column_low + (i < 2 ? 0 : 8)] = s[n][i];
        if (warp == 0 && lane < 4 && i < 2) to_z[feature] = z[n][i];
      }
  }

  const CausalArguments& a;
  const TensorMaps& maps;
  unsigned char* const memory;
  const uint32_t base = shared_address(memory);
  float* const bias = reinterpret_cast<float*>(memory + Memory::kBias);

  const Shape& shape = a.shape;
  const int item = blockIdx.x, segment = blockIdx.y;
  const int batch = item / shape.query_heads, head = item % shape.query_heads;
  const int state_head = head / (shape.query_heads / shape.state_heads);
  const int tid = threadIdx.x, lane = tid & 31,
            warp = __shfl_sync(0xffffffffu, tid >> 5, 0);  // uniform, and known to be
  const int group = warp >> 2, row0 = (warp & 3) * 16, low = row0 + lane / 4, high = low + 8;
  const int column_low = group * kHalfHead + low;
  const int features = shape.feature_size;
  const int chunk_begin = segment * a.plan.chunks_per_segment;
  const int chunk_end = min(chunk_begin + a.plan.chunks_per_segment, a.plan.chunks);
  const int key_head = state_head / (shape.state_heads / shape.key_heads);
  const int value_head = state_head / (shape.state_heads / shape.value_heads);

  float s[kFeatures / 8][4] = {}, z[kFeatures / 8][4] = {};
};

/// causal_forward_kernel for head size 128 on Hopper: chunks of 64 tokens; both warpgroups hold all
/// rows and half the columns of the values, the state and the output. Each makes the features of
/// one side; the weights of a chunk both compute.
template <int kFeatures, bool kMap, bool kSumsOnly>
__global__ void __launch_bounds__(kWideThreads, 1)
    causal_forward_wide_kernel(const __grid_constant__ CausalArguments a,
                               const __grid_constant__ TensorMaps maps) {
#ifdef __CUDA_ARCH_FEAT_SM90_ALL
  extern __shared__ unsigned char unaligned_memory[];
  WideForward<kFeatures, kMap, kSumsOnly>(
      a, maps, unaligned_memory + (-shared_address(unaligned_memory) & 1023))
      .run();
#else
  __trap();
#endif
}

template <int kFeatures, bool kMap>
cudaError_t launch_forward_wide(const CausalArguments& a, cudaStream_t stream) {
  return launch_forward_kernels(&causal_forward_wide_kernel<kFeatures, kMap, true>,
                                &causal_forward_wide_kernel<kFeatures, kMap, false>,
                                kWideThreads,
                                WideForwardMemory<kFeatures, kMap>::kBytes,
                                a,
                                stream);
}

}  // namespace t2r::kernels::cuda::sm90
