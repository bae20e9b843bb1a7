#include "model/kernels/cuda/decode/cache_attention.h"

#include <algorithm>

#include "model/kernels/cuda/launch_early.cuh"
#include "model/kernels/cuda/rows.cuh"

namespace t2r::kernels::cuda {
namespace {

constexpr int kThreads = 256, kWarps = kThreads / 32;
constexpr int kBlocksAtOnce = 2;  // per multiprocessor, which registers allow
constexpr float kLog2E = 1.4426950408889634F;

/// Values of one access, in registers until they are needed.
template <class Scalar>
__device__ __forceinline__ void widen(float (&to)[kVectorWidth<Scalar>], const uint4& from) {
  load(to, reinterpret_cast<const Scalar*>(&from));
}

/// 2^(x - top), 0 for x = -infinity even where top is that too.
__device__ __forceinline__ float weight_of(float x, float top) {
  return top == -INFINITY ? 0.0F : exp2f(x - top);
}

// Symbols: K, V are the cache's keys and values; q a query times scale and log2(e), so that weights
// are powers of 2; `top` the largest score so far, `sum` and `value` the sums of weights and of
// weights times V, all relative to it; a part is a block's range of the cache, a slot the query
// heads of one sequence and key head that a block takes together.
//
// Barriers: the token's k and v are in the cache (the last part alone) | what the warps found is in
// shared memory | this block's part is in device memory and its ticket drawn | (the last block)
// weights of the parts | shares of their values.

/// A block's shared memory. `values`: of a warp's rows of the cache, then the sum and the largest
/// score.
template <int kQueries, int kColumns>
struct CacheMemory {
  float values[kWarps][kQueries][kColumns + 4];
  float4 shares[kThreads];
  float weights[kQueries][kMaxCacheParts];
  float sums[kQueries];
  bool is_last;
};

/// A block of threads of cache_attention_kernel.
template <class Scalar, int kLanes, int kQueries>
class CacheBlock {
  static constexpr int kWidth = kVectorWidth<Scalar>, kRows = 32 / kLanes, kAhead = 4;
  static constexpr int kTile = kRows * kAhead, kColumns = kLanes * kWidth;

 public:
  using Memory = CacheMemory<kQueries, kColumns>;

  __device__ __forceinline__ CacheBlock(const CacheAttention& arguments, Memory& shared)
      : a(arguments), memory(shared) {}

  __device__ __forceinline__ void run() {
    const int64_t length = *a.length, all = length + 1;
    if (length < 0 || length >= a.capacity) {
      if (part == 0) write_nan();
      return;
    }
    const int64_t share = (all + a.parts - 1) / a.parts,
                  per_part = (share + kWarps * kTile - 1) / (kWarps * kTile) * (kWarps * kTile);
    const int parts =
        static_cast<int>((all + per_part - 1) / per_part);  // the others have nothing to do
    if (part >= parts) return;
    if (part == parts - 1) append(length);  // every round writes the same
    const int64_t begin = part * per_part;
    Found found;
    walk(found, begin, min(all, begin + per_part));
    join_lanes(found);
    __syncthreads();
    join_warps(parts);
    if (parts > 1 && is_last_block(parts)) join_parts(parts);
  }

 private:
  struct Found {
    float value[kQueries][kWidth] = {}, sum[kQueries] = {}, top[kQueries];
  };

  __device__ __forceinline__ Scalar* output(int member) const {
    return static_cast<Scalar*>(a.o.data) + batch * a.o.batch_stride +
           (first_head + member) * a.o.head_stride;
  }

  /// The cache has no room for the token: NaN instead of a plausible wrong output.
  __device__ __forceinline__ void write_nan() const {
    for (int i = tid; i < members * D; i += kThreads)
      output(i / D)[i % D] = from_float<Scalar>(NAN);
  }

  /// Adds the token's k and v to the cache.
  __device__ __forceinline__ void append(int64_t length) const {
    const Scalar* const k = static_cast<const Scalar*>(a.k.data) + batch * a.k.batch_stride +
                            key_head * a.k.head_stride;
    const Scalar* const v = static_cast<const Scalar*>(a.v.data) + batch * a.v.batch_stride +
                            key_head * a.v.head_stride;
    for (int i = tid; i < D; i += kThreads)
      keys[length * D + i] = k[i], values[length * D + i] = v[i];
    __syncthreads();
  }

  /// What this group of lanes finds in its rows of [begin, end).
  __device__ __forceinline__ void walk(Found& found, int64_t begin, int64_t end) const {
    float q[kQueries][kWidth];
#pragma unroll
    for (int m = 0; m < kQueries; ++m) {
      const Scalar* const from = static_cast<const Scalar*>(a.q.data) + batch * a.q.batch_stride +
                                 (first_head + m) * a.q.head_stride;
#pragma unroll
      for (int j = 0; j < kWidth; ++j)
        q[m][j] =
            m < members && has_columns ? as_float(from[column + j]) * (a.scale * kLog2E) : 0.0F;
    }
#pragma unroll
    for (int m = 0; m < kQueries; ++m) found.top[m] = -INFINITY;
    for (int64_t first = begin + warp * kTile; first < end; first += kWarps * kTile) {
      uint4 k[kAhead], v[kAhead];
#pragma unroll
      for (int i = 0; i < kAhead; ++i) {
        const int64_t token = first + i * kRows + row;
        const bool is_there = token < end && has_columns;
        k[i] = is_there ? *reinterpret_cast<const uint4*>(keys + token * D + column)
                        : uint4{0, 0, 0, 0};
        v[i] = is_there ? *reinterpret_cast<const uint4*>(values + token * D + column)
                        : uint4{0, 0, 0, 0};
      }
      float score[kAhead][kQueries];
      make_scores(score, q, k, first, end);
      add_rows(found, score, v);
    }
  }

  __device__ __forceinline__ void make_scores(float (&score)[kAhead][kQueries],
                                              const float (&q)[kQueries][kWidth],
                                              const uint4 (&k)[kAhead],
                                              int64_t first,
                                              int64_t end) const {
#pragma unroll
    for (int i = 0; i < kAhead; ++i) {
      float x[kWidth];
      widen<Scalar>(x, k[i]);
      const bool is_there = first + i * kRows + row < end;
#pragma unroll
      for (int m = 0; m < kQueries; ++m) {
        float product = q[m][0] * x[0];
#pragma unroll
        for (int j = 1; j < kWidth; ++j) product = fmaf(q[m][j], x[j], product);
#pragma unroll
        for (int distance = kLanes / 2; distance > 0; distance /= 2)
          product += __shfl_xor_sync(kAllLanes, product, distance);
        score[i][m] = is_there ? product : -INFINITY;
      }
    }
  }

  /// Scores become weights relative to the largest; what was found before is scaled down to it.
  __device__ __forceinline__ static void add_rows(Found& found,
                                                  float (&score)[kAhead][kQueries],
                                                  const uint4 (&v)[kAhead]) {
#pragma unroll
    for (int m = 0; m < kQueries; ++m) {
      float now = found.top[m];
#pragma unroll
      for (int i = 0; i < kAhead; ++i) now = fmaxf(now, score[i][m]);
      const float factor = weight_of(found.top[m], now);
      found.top[m] = now;
      found.sum[m] *= factor;
#pragma unroll
      for (int j = 0; j < kWidth; ++j) found.value[m][j] *= factor;
#pragma unroll
      for (int i = 0; i < kAhead; ++i) {
        score[i][m] = weight_of(score[i][m], now);
        found.sum[m] += score[i][m];
      }
    }
#pragma unroll
    for (int i = 0; i < kAhead; ++i) {
      float x[kWidth];
      widen<Scalar>(x, v[i]);
#pragma unroll
      for (int m = 0; m < kQueries; ++m) {
#pragma unroll
        for (int j = 0; j < kWidth; ++j)
          found.value[m][j] = fmaf(score[i][m], x[j], found.value[m][j]);
      }
    }
  }

  /// Adds the groups of lanes of a warp up, to shared memory.
  __device__ __forceinline__ void join_lanes(Found& found) const {
#pragma unroll
    for (int m = 0; m < kQueries; ++m) {
      float now = found.top[m], &sum = found.sum[m];
#pragma unroll
      for (int distance = 16; distance >= kLanes; distance /= 2)
        now = fmaxf(now, __shfl_xor_sync(kAllLanes, now, distance));
      const float factor = weight_of(found.top[m], now);
      sum *= factor;
#pragma unroll
      for (int distance = 16; distance >= kLanes; distance /= 2)
        sum += __shfl_xor_sync(kAllLanes, sum, distance);
#pragma unroll
      for (int j = 0; j < kWidth; ++j) {
        float& value = found.value[m][j];
        value *= factor;
#pragma unroll
        for (int distance = 16; distance >= kLanes; distance /= 2)
          value += __shfl_xor_sync(kAllLanes, value, distance);
      }
      float* const to = memory.values[warp][m];
      if (row == 0) {
#pragma unroll
        for (int j = 0; j < kWidth; j += 4) {
          *reinterpret_cast<float4*>(to + column + j) = {found.value[m][j],
                                                         found.value[m][j + 1],
                                                         found.value[m][j + 2],
                                                         found.value[m][j + 3]};
        }
      }
      if (lane == 0) to[kColumns] = sum, to[kColumns + 1] = now;
    }
  }

  /// Adds the warps up: o, or this block's part in device memory.
  __device__ __forceinline__ void join_warps(int parts) const {
    const auto& found = memory.values;
    float* const partial = a.partial + (int64_t{slot} * a.parts + part) * kQueries * (D + 4);
    for (int i = tid; i < members * (D + 2); i += kThreads) {
      const int member = i / (D + 2), at = i % (D + 2), index = at < D ? at : kColumns;
      float now = -INFINITY, total = 0.0F, whole = 0.0F;
#pragma unroll
      for (int w = 0; w < kWarps; ++w) now = fmaxf(now, found[w][member][kColumns + 1]);
#pragma unroll
      for (int w = 0; w < kWarps; ++w) {
        const float factor = weight_of(found[w][member][kColumns + 1], now);
        total += factor * found[w][member][index];
        whole += factor * found[w][member][kColumns];
      }
      if (parts == 1) {
        if (at < D) output(member)[at] = from_float<Scalar>(total / whole);
      } else {
        partial[member * (D + 4) + at] = at <= D ? total : now;
      }
    }
  }

  /// Whether the other parts of the slot are in device memory; by all threads.
  __device__ __forceinline__ bool is_last_block(int parts) const {
    __threadfence();
    __syncthreads();
    if (tid == 0) memory.is_last = atomicAdd(a.tickets + slot, 1) == parts - 1;
    __syncthreads();
    if (!memory.is_last) return false;
    __threadfence();
    if (tid == 0) a.tickets[slot] = 0;
    return true;
  }

  /// What the block of some part found for a member: values, their sum, the largest score.
  __device__ __forceinline__ const float* record(int of_part, int member) const {
    const float* const all_parts = a.partial + int64_t{slot} * a.parts * kQueries * (D + 4);
    return all_parts + (int64_t{of_part} * kQueries + member) * (D + 4);
  }

  /// o of the slot from all parts.
  __device__ __forceinline__ void join_parts(int parts) const {
    for (int member = warp; member < members; member += kWarps) weigh_parts(parts, member);
    __syncthreads();
    // 16 bytes of a member's values for every thread; where threads are left over, they share the
    // parts.
    const int per_member = D / 4, units = members * per_member, sharers = kThreads / units,
              sharer = tid / units, unit = tid % units;
    const int member = unit / per_member, at = unit % per_member * 4;
    float4 total = {0.0F, 0.0F, 0.0F, 0.0F};
    if (sharer < sharers) {
#pragma unroll 8
      for (int p = sharer; p < parts; p += sharers) {
        const float4 x = *reinterpret_cast<const float4*>(record(p, member) + at);
        const float weight = memory.weights[member][p];
        total = {fmaf(weight, x.x, total.x),
                 fmaf(weight, x.y, total.y),
                 fmaf(weight, x.z, total.z),
                 fmaf(weight, x.w, total.w)};
      }
      memory.shares[tid] = total;
    }
    __syncthreads();
    if (tid < units) {
      for (int s = 1; s < sharers; ++s) {
        const float4 x = memory.shares[s * units + tid];
        total = {total.x + x.x, total.y + x.y, total.z + x.z, total.w + x.w};
      }
      Scalar* const o = output(member) + at;
      const float whole = memory.sums[member];
      o[0] = from_float<Scalar>(total.x / whole), o[1] = from_float<Scalar>(total.y / whole);
      o[2] = from_float<Scalar>(total.z / whole), o[3] = from_float<Scalar>(total.w / whole);
    }
  }

  /// Weights of a member's parts relative to its largest score, and the sum of all; by a warp.
  __device__ __forceinline__ void weigh_parts(int parts, int member) const {
    constexpr int kEach = kMaxCacheParts / 32;
    float its_sum[kEach], its_top[kEach], now = -INFINITY, total = 0.0F;
#pragma unroll
    for (int i = 0; i < kEach; ++i) {
      const int p = lane + 32 * i;
      its_sum[i] = p < parts ? record(p, member)[D] : 0.0F;
      its_top[i] = p < parts ? record(p, member)[D + 1] : -INFINITY;
      now = fmaxf(now, its_top[i]);
    }
    now = reduce_warp(now, Max());
#pragma unroll
    for (int i = 0; i < kEach; ++i) {
      const float weight = weight_of(its_top[i], now);
      memory.weights[member][lane + 32 * i] = weight;
      total = fmaf(weight, its_sum[i], total);
    }
    total = reduce_warp(total, Add());
    if (lane == 0) memory.sums[member] = total;
  }

  const CacheAttention& a;
  Memory& memory;
  const int tid = threadIdx.x, lane = tid & 31, warp = tid >> 5, row = lane / kLanes,
            column = lane % kLanes * kWidth;
  const int group = a.query_heads / a.key_heads, rounds = (group + kQueries - 1) / kQueries,
            D = a.head_size;
  const int slot = blockIdx.x / a.parts, part = blockIdx.x % a.parts;
  const int item = slot / rounds, first_member = slot % rounds * kQueries,
            members = min(kQueries, group - first_member);
  const int batch = item / a.key_heads, key_head = item % a.key_heads,
            first_head = key_head * group + first_member;
  const bool has_columns = column < D;
  Scalar* const keys = static_cast<Scalar*>(a.keys) + item * a.capacity * D;
  Scalar* const values = static_cast<Scalar*>(a.values) + item * a.capacity * D;
};

/// A block of threads takes a range of the cache for the query heads of one slot; its warps take
/// tiles of the range in turn. `kLanes` neighbouring lanes hold a row of the cache, so a warp reads
/// 32 / kLanes rows at once and `kAhead` times as many before it waits; every group of lanes keeps
/// the largest score, the sum and the values of the rows that it has seen. What the blocks of a
/// slot have found is added up by the one that ends last.
template <class Scalar, int kLanes, int kQueries>
__global__ void __launch_bounds__(kThreads, kBlocksAtOnce)
    cache_attention_kernel(const __grid_constant__ CacheAttention a) {
  using Block = CacheBlock<Scalar, kLanes, kQueries>;
  __shared__ __align__(16) typename Block::Memory memory;
  wait_for_earlier_kernels();
  Block(a, memory).run();
}

template <class Scalar, int kLanes, int kQueries>
cudaError_t launch(const CacheAttention& a, cudaStream_t stream) {
  const int64_t slots =
      int64_t{a.batch} * a.key_heads * cache_group(a.query_heads, a.key_heads).rounds;
  return launch_early(a.overlaps,
                      &cache_attention_kernel<Scalar, kLanes, kQueries>,
                      dim3(static_cast<unsigned>(slots * a.parts)),
                      kThreads,
                      0,
                      stream,
                      a);
}

template <class Scalar, int kLanes>
cudaError_t launch_queries(const CacheAttention& a, cudaStream_t stream) {
  switch (cache_group(a.query_heads, a.key_heads).queries) {
    case 1:
      return launch<Scalar, kLanes, 1>(a, stream);
    case 2:
      return launch<Scalar, kLanes, 2>(a, stream);
    case 3:
      return launch<Scalar, kLanes, 3>(a, stream);
    default:
      return launch<Scalar, kLanes, 4>(a, stream);
  }
}

template <class Scalar>
cudaError_t launch_lanes(const CacheAttention& a, cudaStream_t stream) {
  constexpr int kWidth = kVectorWidth<Scalar>;
  if (a.head_size <= 32) return launch_queries<Scalar, 32 / kWidth>(a, stream);
  if (a.head_size <= 64) return launch_queries<Scalar, 64 / kWidth>(a, stream);
  return launch_queries<Scalar, 128 / kWidth>(a, stream);
}

}  // namespace

CacheGroup cache_group(int query_heads, int key_heads) {
  constexpr int kMost = 4;  // what registers hold
  const int group = query_heads / key_heads, rounds = (group + kMost - 1) / kMost;
  return {.queries = (group + rounds - 1) / rounds, .rounds = rounds};
}

int cache_attention_parts(int64_t slots, const Device& device) {
  // The time is that of the blocks that a multiprocessor works through one after the other; the
  // fewest parts that come near the shortest.
  const int64_t at_once = int64_t{kBlocksAtOnce} * device.multiprocessors;
  const auto time = [&](int parts) {
    return static_cast<double>(divide_up(slots * parts, at_once)) / parts;
  };
  double shortest = time(1);
  for (int parts = 2; parts <= kMaxCacheParts; ++parts) shortest = std::min(shortest, time(parts));
  int parts = 1;
  while (time(parts) > 1.1 * shortest) ++parts;
  return parts;
}

cudaError_t cache_attention(const CacheAttention& a, cudaStream_t stream) {
  return a.is_bf16 ? launch_lanes<bf16>(a, stream) : launch_lanes<float>(a, stream);
}

}  // namespace t2r::kernels::cuda
