// The next token of each row: the most probable one, or one drawn as model/kernels/draw_rule.h
// says. Compiled without contraction to fused multiply-adds, so that the CPU draws the same.
#include "model/kernels/cuda/decode/draw_token.h"

#include "model/kernels/cuda/launch_early.cuh"
#include "model/kernels/cuda/rows.cuh"
#include "model/kernels/cuda/sm90/cluster.cuh"

namespace t2r::kernels::cuda {
namespace {

constexpr int kGreedyThreads = 1024;
constexpr int kThreads = 512, kGroup = 4;  // tokens that one counter of random numbers serves
constexpr int kSharedBlocks = 8;           // that share a row
constexpr int kBins = 1 << kDigitBits, kFine = 32,
              kCoarse = kBins / kFine;  // values of a digit, and runs of 32 of them
static_assert(kCoarse == 64 && kBins == 4 * kThreads,
              "two coarse sums a lane; eight threads a coarse sum");

/// Candidates compare by key, then the first token wins.
__device__ __forceinline__ uint64_t candidate(uint32_t key, uint32_t token) {
  return uint64_t{key} << 32 | static_cast<uint32_t>(~token);
}
__device__ __forceinline__ uint32_t token_of(uint64_t candidate) {
  return ~static_cast<uint32_t>(candidate);
}

/// The largest of all threads of a block, in every thread; `scratch` holds a number a warp.
__device__ __forceinline__ uint64_t largest_of_block(uint64_t x, uint64_t* scratch) {
  const int lane = threadIdx.x & 31, warp = threadIdx.x >> 5, warps = blockDim.x >> 5;
  const auto over_warp = [&] {
#pragma unroll
    for (int distance = 16; distance > 0; distance /= 2) {
      const uint64_t other = __shfl_xor_sync(kAllLanes, x, distance);
      x = other > x ? other : x;
    }
  };
  over_warp();
  __syncthreads();  // the scratch of an earlier call has been read
  if (lane == 0) scratch[warp] = x;
  __syncthreads();
  x = lane < warps ? scratch[lane] : 0;
  over_warp();
  return x;
}

/// @param drawn  negative: nothing could be drawn
__device__ __forceinline__ void give(const DrawToken& a, int64_t row, int64_t drawn) {
  a.tokens[row] = drawn < 0 ? 0 : drawn;
  a.history[*a.position % a.history_rows * a.rows + row] = drawn;
}

/// One block of threads a row.
template <class Scalar, int kWidth>
__global__ void __launch_bounds__(kGreedyThreads)
    greedy_kernel(const __grid_constant__ DrawToken a) {
  __shared__ uint64_t scratch[32];
  float best = -INFINITY;
  uint32_t token = 0;
  bool has_nan = false;  // which is never larger than another number
  wait_for_earlier_kernels();
  const Scalar* const logits = static_cast<const Scalar*>(a.logits) + blockIdx.x * a.vocabulary;
  const int size = static_cast<int>(a.vocabulary);
#pragma unroll 4
  for (int first = threadIdx.x * kWidth; first < size; first += kGreedyThreads * kWidth) {
    float x[kWidth];
    load(x, logits + first);
#pragma unroll
    for (int j = 0; j < kWidth; ++j) {
      if (x[j] > best) best = x[j], token = first + j;
      has_nan = has_nan || x[j] != x[j];
    }
  }
  const uint64_t found = largest_of_block(candidate(ordered(has_nan ? NAN : best), token), scratch);
  const bool drawable = can_draw(static_cast<uint32_t>(found >> 32));
  if (threadIdx.x == 0) give(a, blockIdx.x, drawable ? int64_t{token_of(found)} : -1);
}

/// Sums of weights in 64 bits, of which shared memory adds 32 at a time: a sum that runs over is
/// seen in what was there before.
struct alignas(8) Sum {
  uint32_t low, high;
};
__device__ __forceinline__ void add(Sum& sum, uint64_t weight) {
  const uint32_t low = static_cast<uint32_t>(weight);
  const uint32_t carry = atomicAdd(&sum.low, low) > ~low ? 1 : 0,
                 high = static_cast<uint32_t>(weight >> 32) + carry;
  if (high != 0) atomicAdd(&sum.high, high);
}

__device__ __forceinline__ uint64_t whole(const Sum& sum) {
  return uint64_t{sum.high} << 32 | sum.low;
}

struct Shared {
  // What the other blocks of the row read:
  Sum bins[2][kBins];
  uint64_t coarse[2][kCoarse];
  uint64_t given[2];  // the largest key, the best candidate
  // The block's own:
  uint64_t scratch[kThreads / 32];
  uint32_t digit;
};

/// Where in a falling order of sums, one a lane, the target lies: the lane, and what is in front of
/// it.
struct Place {
  int lane;
  uint64_t in_front;
};
__device__ __forceinline__ uint64_t sum_of_lanes_so_far(uint64_t x) {
  const int lane = threadIdx.x & 31;
#pragma unroll
  for (int distance = 1; distance < 32; distance *= 2) {
    const uint64_t other = __shfl_up_sync(kAllLanes, x, distance);
    if (lane >= distance) x += other;
  }
  return x;
}
__device__ __forceinline__ Place find(uint64_t sum, uint64_t so_far, uint64_t target) {
  const int lane = __ffs(__ballot_sync(kAllLanes, so_far >= target)) - 1;
  return {lane, __shfl_sync(kAllLanes, so_far - sum, lane)};
}

/// This thread's part of a row that the blocks of a cluster, or one block, share.
template <class Scalar, bool kWide, int kBlocks>
struct Row {
  Shared& shared;
  const Scalar* logits;
  int rank, size;

  /// Waits for all blocks of the row, and sees what they wrote to shared memory.
  __device__ __forceinline__ void sync() const {
    if constexpr (kBlocks > 1) {
      sync_cluster();
    } else {
      __syncthreads();
    }
  }

  /// Eight bytes of shared memory as another block of the row has them.
  __device__ __forceinline__ uint64_t read_at(const void* own, int other) const {
    if constexpr (kBlocks == 1) return *static_cast<const uint64_t*>(own);
    const float2 pair =
        load_pair_at(address_at_rank(static_cast<uint32_t>(__cvta_generic_to_shared(own)), other));
    return uint64_t{__float_as_uint(pair.y)} << 32 | __float_as_uint(pair.x);
  }
  __device__ __forceinline__ uint64_t sum_at(const void* own) const {
    uint64_t sum = 0;
#pragma unroll
    for (int other = 0; other < kBlocks; ++other) sum += read_at(own, other);
    return sum;
  }

  /// body(first token, keys of kGroup tokens); absent ones have key 0.
  template <class Body>
  __device__ __forceinline__ void for_each_group(const Body& body) const {
#pragma unroll 2
    for (int first = (rank * kThreads + static_cast<int>(threadIdx.x)) * kGroup; first < size;
         first += kBlocks * kThreads * kGroup) {
      uint32_t keys[kGroup];
      if constexpr (!kWide) {
#pragma unroll
        for (int j = 0; j < kGroup; ++j)
          keys[j] = first + j < size ? ordered(as_float(logits[first + j])) : 0;
      } else if constexpr (sizeof(Scalar) == 4) {
        const float4 x = *reinterpret_cast<const float4*>(logits + first);
        keys[0] = ordered(x.x), keys[1] = ordered(x.y), keys[2] = ordered(x.z),
        keys[3] = ordered(x.w);
      } else {
        const uint2 x = *reinterpret_cast<const uint2*>(logits + first);
        keys[0] = ordered(__uint_as_float(x.x << 16)),
        keys[1] = ordered(__uint_as_float(x.x & 0xffff0000U));
        keys[2] = ordered(__uint_as_float(x.y << 16)),
        keys[3] = ordered(__uint_as_float(x.y & 0xffff0000U));
      }
      body(first, keys);
    }
  }

  /// The largest of all threads of the row's blocks; once for each `slot` of Shared::given.
  __device__ __forceinline__ uint64_t largest_of_row(uint64_t x, int slot) const {
    x = largest_of_block(x, shared.scratch);
    if (threadIdx.x == 0) shared.given[slot] = x;
    sync();
#pragma unroll
    for (int other = 0; other < kBlocks; ++other) {
      const uint64_t given = read_at(&shared.given[slot], other);
      x = given > x ? given : x;
    }
    return x;
  }

  /// The key t for which the weight of all larger keys is below a target and that of t and all
  /// larger ones is not: digit by digit, from sums of weights per value of the digit.
  ///
  /// @param turn       passes so far: bins[turn % 2] is zero, and nobody reads it
  /// @param weight_of  of a key; a whole number, 0: none
  /// @param target_of  the target, 1 to the sum of all weights, from that sum
  template <class WeightOf, class TargetOf>
  __device__ __forceinline__ uint32_t least_kept(int turn,
                                                 const WeightOf& weight_of,
                                                 const TargetOf& target_of) const {
    const int lane = threadIdx.x & 31;
    uint64_t target = 0;  // of the first warp
    uint32_t prefix = 0;
    for (int pass = 0; pass < kDigits; ++pass, ++turn) {
      const int shift = digit_shift(pass), bits = digit_bits(pass);
      Sum* const bins = shared.bins[turn % 2];
      uint64_t* const coarse = shared.coarse[turn % 2];
      for_each_group([&](int, const uint32_t(&keys)[kGroup]) {
#pragma unroll
        for (int j = 0; j < kGroup; ++j) {
          if (uint64_t{keys[j]} >> (shift + bits) != prefix) continue;
          const uint64_t weight = weight_of(keys[j]);
          if (weight != 0) add(bins[keys[j] >> shift & ((1U << bits) - 1)], weight);
        }
      });
      __syncthreads();
      uint64_t sum = 0;
#pragma unroll
      for (int i = 0; i < 4; ++i) sum += whole(bins[4 * threadIdx.x + i]);
#pragma unroll
      for (int distance = 1; distance < 8; distance *= 2)
        sum += __shfl_xor_sync(kAllLanes, sum, distance);
      if (threadIdx.x % 8 == 0) coarse[threadIdx.x / 8] = sum;
      sync();  // all sums are there, and nobody reads the other half any more
      for (int i = threadIdx.x; i < kBins; i += kThreads) shared.bins[(turn + 1) % 2][i] = {0, 0};
      if (threadIdx.x < 32) {
        const uint64_t upper = sum_at(&coarse[kCoarse - 1 - 2 * lane]),
                       both = upper + sum_at(&coarse[kCoarse - 2 - 2 * lane]);
        uint64_t so_far = sum_of_lanes_so_far(both);
        if (pass == 0) target = target_of(__shfl_sync(kAllLanes, so_far, 31));
        Place place = find(both, so_far, target);
        target -= place.in_front;
        const uint64_t its_upper = __shfl_sync(kAllLanes, upper, place.lane);
        const bool in_lower = target > its_upper;
        if (in_lower) target -= its_upper;
        const int begin = (kCoarse - 1 - 2 * place.lane - (in_lower ? 1 : 0)) * kFine;
        const uint64_t fine = sum_at(&bins[begin + kFine - 1 - lane]);
        place = find(fine, sum_of_lanes_so_far(fine), target);
        target -= place.in_front;
        if (lane == 0) shared.digit = begin + kFine - 1 - place.lane;
      }
      __syncthreads();
      prefix = prefix << bits | shared.digit;
    }
    return prefix;
  }
};

/// The blocks of a cluster take groups of a row's tokens in turn. The largest logit; where asked
/// for, the least kept one by count, then by probability; the best of what is kept with its noise.
/// Logits are read again each time: they stay in the caches.
template <class Scalar, bool kWide, int kBlocks>
__global__ void __launch_bounds__(kThreads, 2) draw_kernel(const __grid_constant__ DrawToken a) {
  __shared__ Shared shared;
  for (int i = threadIdx.x; i < kBins; i += kThreads) shared.bins[0][i] = {0, 0};
  const int64_t at = blockIdx.x / kBlocks;
  const Row<Scalar, kWide, kBlocks> row{shared,
                                        static_cast<const Scalar*>(a.logits) + at * a.vocabulary,
                                        static_cast<int>(blockIdx.x) % kBlocks,
                                        static_cast<int>(a.vocabulary)};
  wait_for_earlier_kernels();

  uint32_t own_largest = 0;
  row.for_each_group([&](int, const uint32_t(&keys)[kGroup]) {
    own_largest = max(own_largest, max(max(keys[0], keys[1]), max(keys[2], keys[3])));
  });
  const uint32_t largest_key = static_cast<uint32_t>(row.largest_of_row(own_largest, 0));
  const float largest = value_of(largest_key);
  const bool drawable = can_draw(
      largest_key);  // the same for all blocks of the row, as all that decides about waiting is

  uint32_t least = 0;
  int turn = 0;
  if (drawable && a.rule.top_k > 0 && a.rule.top_k < a.vocabulary) {
    least = row.least_kept(
        turn,
        [](uint32_t key) { return uint64_t{key != 0}; },
        [&](uint64_t) { return static_cast<uint64_t>(a.rule.top_k); });
    turn += kDigits;
  }
  if (drawable && a.rule.top_p < 1.0) {
    least = row.least_kept(
        turn,
        [&](uint32_t key) {
          return key >= least && key != 0
                     ? mass_of(scaled(value_of(key), largest, a.rule.inverse_temperature))
                     : 0;
        },
        [&](uint64_t total) { return mass_to_reach(a.rule.top_p, total); });
  }

  uint64_t best = 0;
  const int64_t position = *a.position;
  row.for_each_group([&](int first, const uint32_t(&keys)[kGroup]) {
    if (max(max(keys[0], keys[1]), max(keys[2], keys[3])) < least) return;
    const FourWords words =
        words_of(a.rule.seed, static_cast<uint32_t>(at), position, first / kGroup);
#pragma unroll
    for (int j = 0; j < kGroup; ++j) {
      if (keys[j] < least || keys[j] == 0) continue;
      const float score =
          scaled(value_of(keys[j]), largest, a.rule.inverse_temperature) + gumbel(words.word[j]);
      const uint64_t mine = candidate(ordered(score), first + j);
      best = mine > best ? mine : best;
    }
  });
  best = row.largest_of_row(best, 1);
  if (row.rank == 0 && threadIdx.x == 0) give(a, at, drawable ? int64_t{token_of(best)} : -1);
  row.sync();  // a block whose shared memory is read has not ended
}

template <class Scalar>
cudaError_t launch_greedy(const DrawToken& a, cudaStream_t stream) {
  constexpr int kWidth = kVectorWidth<Scalar>;
  const bool wide = a.vocabulary % kWidth == 0 && is_aligned_16(a.logits);
  return launch_early(a.overlaps,
                      wide ? &greedy_kernel<Scalar, kWidth> : &greedy_kernel<Scalar, 1>,
                      dim3(static_cast<unsigned>(a.rows)),
                      kGreedyThreads,
                      0,
                      stream,
                      a);
}

template <class Scalar, int kBlocks>
cudaError_t launch_draw(const DrawToken& a, cudaStream_t stream) {
  const bool wide = a.vocabulary % kGroup == 0 && is_aligned_16(a.logits);
  return launch_clusters(
      a.overlaps,
      kBlocks,
      wide ? &draw_kernel<Scalar, true, kBlocks> : &draw_kernel<Scalar, false, kBlocks>,
      dim3(static_cast<unsigned>(a.rows * kBlocks)),
      kThreads,
      0,
      stream,
      a);
}

template <class Scalar>
cudaError_t launch(const DrawToken& a, cudaStream_t stream) {
  if (a.rule.inverse_temperature == 0.0F) return launch_greedy<Scalar>(a, stream);
  return a.shares_rows ? launch_draw<Scalar, kSharedBlocks>(a, stream)
                       : launch_draw<Scalar, 1>(a, stream);
}

}  // namespace

cudaError_t draw_token(const DrawToken& a, cudaStream_t stream) {
  return a.is_bf16 ? launch<bf16>(a, stream) : launch<float>(a, stream);
}

}  // namespace t2r::kernels::cuda
