#include <algorithm>

#include "model/kernels/cuda/causal/causal_common.cuh"
#include "model/kernels/cuda/decode/decode_step.h"
#include "model/kernels/cuda/sm90/cluster.cuh"

namespace t2r::kernels::cuda {
namespace {

constexpr int kBlockWarps = 4;  // unless a state needs more
constexpr int kFewWarps = 8;    // of 8 kB a multiprocessor: with fewer, smaller shares are quicker
constexpr int kAhead = 4;       // values of the token that a thread loads before the state
constexpr int kMaxShared = 160 * 1024;

__device__ __forceinline__ float to_float(float x) {
  return x;
}
__device__ __forceinline__ float to_float(bf16 x) {
  return __bfloat162float(x);
}

/// 16 bytes of a row of W times as many values of x, added to `y`.
template <class Scalar>
__device__ __forceinline__ float dot_unit(const float (&w)[16 / sizeof(Scalar)],
                                          const float* x,
                                          float y) {
#pragma unroll
  for (int i = 0; i < static_cast<int>(16 / sizeof(Scalar)); i += 4) {
    const float4 x4 = *reinterpret_cast<const float4*>(x + i);
    y = fmaf(w[i], x4.x, fmaf(w[i + 1], x4.y, fmaf(w[i + 2], x4.z, fmaf(w[i + 3], x4.w, y))));
  }
  return y;
}

__device__ __forceinline__ void unpack_unit(float (&to)[4], const uint4& unit) {
  to[0] = __uint_as_float(unit.x), to[1] = __uint_as_float(unit.y), to[2] = __uint_as_float(unit.z),
  to[3] = __uint_as_float(unit.w);
}
__device__ __forceinline__ void unpack_unit(float (&to)[8], const uint4& unit) {
  const float2 pairs[4] = {unpack(unit.x), unpack(unit.y), unpack(unit.z), unpack(unit.w)};
#pragma unroll
  for (int i = 0; i < 4; ++i) to[2 * i] = pairs[i].x, to[2 * i + 1] = pairs[i].y;
}

__device__ __forceinline__ void store_four(float* to, const float4& x) {
  *reinterpret_cast<float4*>(to) = x;
}
__device__ __forceinline__ void store_four(bf16* to, const float4& x) {
  *reinterpret_cast<uint2*>(to) = {pack(x.x, x.y), pack(x.z, x.w)};
}

__device__ __forceinline__ float4 axpy(float a, const float4& x, const float4& y) {
  return {fmaf(a, x.x, y.x), fmaf(a, x.y, y.y), fmaf(a, x.z, y.z), fmaf(a, x.w, y.w)};
}

/// Sums over the lanes whose numbers differ in bits of `kFrom` and above.
template <int kFrom>
__device__ __forceinline__ float sum_lanes(float x) {
#pragma unroll
  for (int distance = 16; distance >= kFrom; distance /= 2)
    x += __shfl_xor_sync(0xffffffffu, x, distance);
  return x;
}

/// Shared memory in bytes from its start.
template <class Scalar, bool kMap, int kHead, int kHeld>
struct DecodeMemory {
  static constexpr int kFeatures =
      128 * kHeld / kHead;  // of one warp; so a state takes up to 8 warps, or 4 times as many
  static constexpr int kRowBytes =
      kHead * static_cast<int>(sizeof(Scalar)) + 16;  // neighbouring rows begin in other banks
  int phi, partial, denominators, vectors, bytes;     // W comes first

  __host__ __device__ DecodeMemory(const Shape& shape, int warps_per_state, int states) {
    const int warps = warps_per_state * states, group = shape.query_heads / shape.state_heads;
    phi = kMap ? shape.feature_size * kRowBytes : 0;  // [warp][kFeatures][2]
    partial = phi + warps * kFeatures * 8;            // [warp][2][kHead]
    denominators = partial + (warps_per_state > 1 ? warps * 2 * kHead * 4 : 0);  // [warp][2]
    vectors = denominators + (warps + 1) / 2 * 16;  // [state][key, queries][kHead or K]
    bytes = vectors + states * (group + 1) * (kMap ? kHead : shape.feature_size) * 4;
  }
};

// Symbols: S [features, head] and z [features] are the state, o = phi(q) S / (phi(q) . z) the
// output; vectors are a head's key and queries before the map, phi their features; a share is what
// one of a state's warps owns: kFeatures rows of S and of z; a place is a state within the block.
//
// Barriers: W and the vectors are in shared memory | numerators and denominators of all warps of a
// state are | they have been added up (the last two for every pair of vectors, only where warps
// share a state).

/// A block of threads of decode_kernel: (group of sequences, head).
template <class Scalar, bool kMap, int kHead, int kHeld>
class DecodeBlock {
 public:
  __device__ __forceinline__ DecodeBlock(const DecodeArguments& arguments, unsigned char* shared)
      : a(arguments), memory(shared) {}

  __device__ __forceinline__ void run() {
    Own own;
    load(own);
    update(own);
    for (int pair = 1; 2 * pair <= group; ++pair) read(own, pair);
  }

 private:
  using Memory = DecodeMemory<Scalar, kMap, kHead, kHeld>;
  static constexpr int kFeatures = Memory::kFeatures, kUnits = kHead / 4, kRowsAtOnce = 32 / kUnits;
  static constexpr int kOwn = kFeatures < 32 ? 1 : kFeatures / 32;  // features per lane

  /// What a lane holds of the state, the token's value and the map.
  struct Own {
    float4 s[kHeld], v;
    float z[kOwn], bias[kOwn];
  };

  __device__ __forceinline__ const Scalar* input(const View& view, int of) const {
    return static_cast<const Scalar*>(view.data) + batch * view.batch_stride +
           of * view.head_stride;
  }
  __device__ __forceinline__ float vector_value(int i) const {
    const int vector = i / width, column = i % width;
    return to_float(vector == 0 ? key[column] : input(a.q, head * group + vector - 1)[column]);
  }

  /// Prologue: W and the vectors to shared memory, the rest to registers. The loads of S start
  /// before anything waits.
  __device__ __forceinline__ void load(Own& own) const {
    if constexpr (kMap) {
      constexpr int kValues = 16 / sizeof(Scalar);
      const Scalar* const w = static_cast<const Scalar*>(a.weight) + int64_t{head} * K * kHead;
      for (int i = tid; i < K * (kHead / kValues); i += blockDim.x) {
        copy_async_16(shared_address(memory) + i / (kHead / kValues) * Memory::kRowBytes +
                          i % (kHead / kValues) * 16,
                      w + i * kValues,
                      true);
      }
      commit_copies();
    }
    const int values = (group + 1) * width, first_value = share * 32 + lane, team = warps * 32;
    float ahead[kAhead];  // of the vectors
#pragma unroll
    for (int i = 0; i < kAhead; ++i)
      ahead[i] = first_value + i * team < values ? vector_value(first_value + i * team) : 0.0F;
#pragma unroll
    for (int i = 0; i < kHeld; ++i) {
      own.s[i] = exists && begin + first_row + i * kRowsAtOnce < K ? __ldcs(s + 32 * i)
                                                                   : float4{0.0F, 0.0F, 0.0F, 0.0F};
    }
    const Scalar* const value =
        input(a.v, head / (shape.state_heads / shape.value_heads)) + 4 * unit;
    own.v = {to_float(value[0]), to_float(value[1]), to_float(value[2]), to_float(value[3])};
#pragma unroll
    for (int j = 0; j < kOwn; ++j) {
      const bool is_one = feature + 32 * j < K;
      own.bias[j] =
          kMap && is_one
              ? to_float(static_cast<const Scalar*>(a.bias)[int64_t{head} * K + feature + 32 * j])
              : 0.0F;
      own.z[j] = is_one ? a.z[item * K + feature + 32 * j] : 0.0F;
    }
#pragma unroll
    for (int i = 0; i < kAhead; ++i) {
      if (first_value + i * team < values) vectors[first_value + i * team] = ahead[i];
    }
    for (int i = first_value + kAhead * team; i < values; i += team) vectors[i] = vector_value(i);
    wait_copies<0>();
    __syncthreads();
  }

  /// S += phi(k) v^T and z += phi(k), written; o of the first query.
  __device__ __forceinline__ void update(Own& own) const {
    float phi_k[kOwn], phi_q[kOwn];
    make_features(own, 0, phi_k, phi_q);
#pragma unroll
    for (int j = 0; j < kOwn; ++j) {
      own.z[j] += phi_k[j];
      if (exists && lane_share == 0 && feature + 32 * j < K)
        a.z[item * K + feature + 32 * j] = own.z[j];
    }
    float4 sum = {0.0F, 0.0F, 0.0F, 0.0F};
#pragma unroll
    for (int i = 0; i < kHeld; ++i) {
      const int row = first_row + i * kRowsAtOnce;
      const float2 both = phi[row];
      own.s[i] = axpy(both.x, own.v, own.s[i]);
      if (exists && begin + row < K) __stcs(s + 32 * i, own.s[i]);
      sum = axpy(both.y, own.s[i], sum);
    }
    finish(0, 1, sum_rows(sum), inner_with_z(own, phi_q));
    join(0, 0, 1);
  }

  /// o of a pair of further queries.
  __device__ __forceinline__ void read(const Own& own, int pair) const {
    float low[kOwn], high[kOwn];
    make_features(own, pair, low, high);
    float4 sum_low = {0.0F, 0.0F, 0.0F, 0.0F}, sum_high = sum_low;
#pragma unroll
    for (int i = 0; i < kHeld; ++i) {
      const float2 both = phi[first_row + i * kRowsAtOnce];
      sum_low = axpy(both.x, own.s[i], sum_low);
      sum_high = axpy(both.y, own.s[i], sum_high);
    }
    const int first = 2 * pair - 1, last = min(2 * pair, group - 1);
    finish(first, 0, sum_rows(sum_low), inner_with_z(own, low));
    if (last > first) finish(last, 1, sum_rows(sum_high), inner_with_z(own, high));
    join(first, last, 0);
  }

  /// phi of vectors 2 pair and 2 pair + 1 for the own features, to registers and to `phi`.
  __device__ __forceinline__ void make_features(const Own& own,
                                                int pair,
                                                float (&low)[kOwn],
                                                float (&high)[kOwn]) const {
    const float* const x_low = vectors + 2 * pair * width;
    const float* const x_high = 2 * pair < group ? x_low + width : x_low;
#pragma unroll
    for (int j = 0; j < kOwn; ++j) low[j] = high[j] = 0.0F;
    if constexpr (kMap) {
      constexpr int kLanes = kFeatures < 32 ? 32 / kFeatures : 1;  // that share a feature
      constexpr int kValues = 16 / sizeof(Scalar), kMapUnits = kHead / kValues / kLanes;
#pragma unroll
      for (int u = 0; u < kMapUnits; ++u) {
        const int map_unit = lane_share * kMapUnits + u;
#pragma unroll
        for (int j = 0; j < kOwn; ++j) {
          float w[kValues];
          unpack_unit(
              w,
              *reinterpret_cast<const uint4*>(
                  memory + min(feature + 32 * j, K - 1) * Memory::kRowBytes + map_unit * 16));
          low[j] = dot_unit<Scalar>(w, x_low + map_unit * kValues, low[j]);
          high[j] = dot_unit<Scalar>(w, x_high + map_unit * kValues, high[j]);
        }
      }
    }
    __syncwarp();  // the last pair's have been read
#pragma unroll
    for (int j = 0; j < kOwn; ++j) {
      const bool is_one = feature + 32 * j < K;
      if constexpr (kMap) {
        low[j] = fmaxf(
            fmaf(pair == 0 ? 1.0F : a.rule.scale, sum_lanes<kFeatures>(low[j]), own.bias[j]), 0.0F);
        high[j] = fmaxf(fmaf(a.rule.scale, sum_lanes<kFeatures>(high[j]), own.bias[j]), 0.0F);
      } else if (is_one) {
        low[j] = x_low[feature + 32 * j];
        high[j] = x_high[feature + 32 * j];
      }
      if (!is_one) low[j] = high[j] = 0.0F;
      if (lane_share == 0) phi[feature - begin + 32 * j] = {low[j], high[j]};
    }
    __syncwarp();
  }

  __device__ __forceinline__ float inner_with_z(const Own& own, const float (&x)[kOwn]) const {
    float sum = 0.0F;
#pragma unroll
    for (int j = 0; j < kOwn; ++j) sum = fmaf(x[j], lane_share == 0 ? own.z[j] : 0.0F, sum);
    return sum_lanes<1>(sum);
  }
  __device__ __forceinline__ static float4 sum_rows(const float4& x) {
    return {sum_lanes<kUnits>(x.x),
            sum_lanes<kUnits>(x.y),
            sum_lanes<kUnits>(x.z),
            sum_lanes<kUnits>(x.w)};
  }

  /// o of query `member` from its numerator and denominator.
  __device__ __forceinline__ void divide(int member,
                                         int column,
                                         const float4& numerator,
                                         float denominator) const {
    const float inverse = 1.0F / fmaxf(denominator + a.rule.added, a.rule.floor);
    if (exists) {
      store_four(o + (head * group + member) * a.o.head_stride + column,
                 {numerator.x * inverse,
                  numerator.y * inverse,
                  numerator.z * inverse,
                  numerator.w * inverse});
    }
  }
  /// This warp's share of a query's numerator and denominator; `slot` is its place in the pair.
  __device__ __forceinline__ void finish(int member,
                                         int slot,
                                         const float4& numerator,
                                         float denominator) const {
    if (first_row != 0) return;
    if (warps == 1) {
      divide(member, 4 * unit, numerator, denominator);
    } else {
      reinterpret_cast<float4*>(partial + (warp * 2 + slot) * kHead)[unit] = numerator;
      if (unit == 0) denominators[warp * 2 + slot] = denominator;
    }
  }
  /// Adds the warps' shares up; members `first` (in slot `slot`) to `last`, two at most.
  __device__ __forceinline__ void join(int first, int last, int slot) const {
    if (warps == 1) return;
    __syncthreads();
    for (int i = share * 32 + lane; i < (last - first + 1) * kUnits; i += warps * 32) {
      float4 numerator = {0.0F, 0.0F, 0.0F, 0.0F};
      float denominator = 0.0F;
      for (int other = place * warps; other < (place + 1) * warps; ++other) {
        const int from = other * 2 + slot + i / kUnits;
        numerator = axpy(
            1.0F, reinterpret_cast<const float4*>(partial + from * kHead)[i % kUnits], numerator);
        denominator += denominators[from];
      }
      divide(first + i / kUnits, 4 * (i % kUnits), numerator, denominator);
    }
    __syncthreads();
  }

  const DecodeArguments& a;
  unsigned char* const memory;
  const Shape& shape = a.shape;
  const int K = shape.feature_size, group = shape.query_heads / shape.state_heads,
            warps = a.plan.warps_per_state;
  const int tid = threadIdx.x, lane = tid & 31, warp = tid >> 5, place = warp / warps,
            share = warp % warps;
  const int head = blockIdx.x % shape.state_heads,
            sequence = blockIdx.x / shape.state_heads * a.plan.states_per_block + place;
  const bool exists = sequence < shape.batch;
  const int batch = exists ? sequence : shape.batch - 1, begin = share * kFeatures;
  const int64_t item = int64_t{batch} * shape.state_heads + head;
  const Memory at{shape, warps, a.plan.states_per_block};
  const int width = kMap ? kHead : K;
  float* const vectors =
      reinterpret_cast<float*>(memory + at.vectors) + place * (group + 1) * width;
  float2* const phi = reinterpret_cast<float2*>(memory + at.phi) + warp * kFeatures;
  float* const partial = reinterpret_cast<float*>(memory + at.partial);
  float* const denominators = reinterpret_cast<float*>(memory + at.denominators);
  // A lane's 16 bytes of a row of S, its first row; its first feature of the map.
  const int unit = lane % kUnits, first_row = lane / kUnits;
  const int feature = begin + lane % kFeatures, lane_share = lane / kFeatures;
  float4* const s = reinterpret_cast<float4*>(a.s + (item * K + begin) * kHead) + lane;
  const Scalar* const key = input(a.k, head / (shape.state_heads / shape.key_heads));
  Scalar* const o = static_cast<Scalar*>(a.o.data) + batch * a.o.batch_stride;
};

/// A warp owns some features of one state, whole rows of S: what it needs of the map, phi, z, S and
/// its share of the sums is its own, so warps meet twice: when W and the token have arrived and,
/// where several share a state, to add numerators and denominators up. The loads of S start first
/// and wait in registers. Vectors (the key, then the queries) are taken two at a time.
template <class Scalar, bool kMap, int kHead, int kHeld>
__global__ void __launch_bounds__(kHeld == 16 ? 256 : 8 * kHead,
                                  kHeld == 16 ? 2 : 1)  // 128 features fit a block
    decode_kernel(const __grid_constant__ DecodeArguments a) {
  extern __shared__ __align__(16) unsigned char memory[];
  wait_for_earlier_kernels();
  DecodeBlock<Scalar, kMap, kHead, kHeld>(a, memory).run();
}

template <class Scalar, bool kMap, int kHead, int kHeld>
cudaError_t launch(const DecodeArguments& a, cudaStream_t stream) {
  const auto kernel = &decode_kernel<Scalar, kMap, kHead, kHeld>;
  const cudaError_t error = cudaFuncSetAttribute(
      kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, a.plan.shared_bytes);
  if (error != cudaSuccess) return error;
  const int groups = (a.shape.batch + a.plan.states_per_block - 1) / a.plan.states_per_block;
  const int blocks = groups * a.shape.state_heads,
            threads = 32 * a.plan.warps_per_state * a.plan.states_per_block;
  return launch_early(a.plan.early, kernel, dim3(blocks), threads, a.plan.shared_bytes, stream, a);
}

/// Calls body(kernel's Scalar, map, head size, held as types) for what the arguments ask for.
template <class Scalar, bool kMap, int kHead, class Body>
auto choose_held(int held, const Body& body) {
  return held == 4 ? body.template operator()<Scalar, kMap, kHead, 4>()
                   : body.template operator()<Scalar, kMap, kHead, 16>();
}
template <class Scalar, bool kMap, class Body>
auto choose_head(int head_size, int held, const Body& body) {
  if (head_size == 32) return choose_held<Scalar, kMap, 32>(held, body);
  if (head_size == 64) return choose_held<Scalar, kMap, 64>(held, body);
  return choose_held<Scalar, kMap, 128>(held, body);
}
template <class Body>
auto choose(bool bf16_inputs, bool map, int head_size, int held, const Body& body) {
  if (bf16_inputs)
    return map ? choose_head<bf16, true>(head_size, held, body)
               : choose_head<bf16, false>(head_size, held, body);
  return map ? choose_head<float, true>(head_size, held, body)
             : choose_head<float, false>(head_size, held, body);
}

}  // namespace

DecodePlan plan_decode(const Shape& shape, bool map, bool bf16_inputs, const Device& device) {
  const auto warps_for = [&](int held) {
    return (shape.feature_size * shape.head_size + 128 * held - 1) / (128 * held);
  };
  const int64_t states = int64_t{shape.batch} * shape.state_heads;
  DecodePlan plan;
  const auto bytes = [&] {
    return choose(bf16_inputs,
                  map,
                  shape.head_size,
                  plan.held,
                  [&]<class Scalar, bool kMap, int kHead, int kHeld> {
                    return DecodeMemory<Scalar, kMap, kHead, kHeld>(
                               shape, plan.warps_per_state, plan.states_per_block)
                        .bytes;
                  });
  };
  const auto hold = [&](int held) {
    plan.held = held;
    plan.warps_per_state = warps_for(held);
  };
  plan.early = device.hopper;
  hold(states * warps_for(16) < int64_t{kFewWarps} * device.multiprocessors ? 4 : 16);
  if (bytes() > device.shared_bytes) hold(16);
  while (2 * plan.states_per_block * plan.warps_per_state <= kBlockWarps &&
         states >= int64_t{3} * plan.states_per_block * device.multiprocessors) {
    plan.states_per_block *= 2;
  }
  for (;; plan.states_per_block /= 2) {
    plan.shared_bytes = bytes();
    if (plan.shared_bytes <= std::min(kMaxShared, device.shared_bytes) ||
        plan.states_per_block == 1)
      return plan;
  }
}

cudaError_t decode_step(const DecodeArguments& a, bool bf16_inputs, cudaStream_t stream) {
  return choose(bf16_inputs,
                a.weight != nullptr,
                a.shape.head_size,
                a.plan.held,
                [&]<class Scalar, bool kMap, int kHead, int kHeld> {
                  return launch<Scalar, kMap, kHead, kHeld>(a, stream);
                });
}

}  // namespace t2r::kernels::cuda
