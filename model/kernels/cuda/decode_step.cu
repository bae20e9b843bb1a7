#include "model/kernels/cuda/decode_step.h"

#include "model/kernels/cuda/tensor_core.cuh"

namespace t2r::kernels::cuda {
namespace {

constexpr int kThreads = 128, kWarps = kThreads / 32;
constexpr int kRound = 8;       // query heads whose numerators are added up at a time
constexpr int kMaxCluster = 8;  // the largest that every device of compute capability 9.0 takes
constexpr int kMinColumns = 8;  // 32 bytes, the unit of memory traffic
static_assert(kThreads >= 128, "one thread per feature");

__device__ __forceinline__ float to_float(float x) { return x; }
__device__ __forceinline__ float to_float(bf16 x) { return __bfloat162float(x); }

__device__ __forceinline__ void arrive_at_cluster() {
#if __CUDA_ARCH__ >= 900
  asm volatile("barrier.cluster.arrive.release.aligned;\n" ::: "memory");
#endif
}
__device__ __forceinline__ void wait_for_cluster() {
#if __CUDA_ARCH__ >= 900
  asm volatile("barrier.cluster.wait.acquire.aligned;\n" ::: "memory");
#endif
}

/// Writes to the place of `to` in the shared memory of another block of the cluster.
__device__ __forceinline__ void store_at_rank(const float* to, int rank, float value) {
#if __CUDA_ARCH__ >= 900
  uint32_t remote;
  asm volatile("mapa.shared::cluster.u32 %0, %1, %2;\n" : "=r"(remote) : "r"(shared_address(to)), "r"(rank));
  asm volatile("st.shared::cluster.f32 [%0], %1;\n" ::"r"(remote), "f"(value) : "memory");
#endif
}

/// 16 bytes of a row of W times as many values of x.
template <class Scalar>
__device__ __forceinline__ float dot_unit(const uint4& w, const float* x) {
  const float4 x0 = *reinterpret_cast<const float4*>(x);
  if constexpr (sizeof(Scalar) == 4) {
    return fmaf(__uint_as_float(w.x), x0.x,
                fmaf(__uint_as_float(w.y), x0.y, fmaf(__uint_as_float(w.z), x0.z, __uint_as_float(w.w) * x0.w)));
  } else {
    const float4 x1 = *reinterpret_cast<const float4*>(x + 4);
    const float2 w0 = unpack(w.x), w1 = unpack(w.y), w2 = unpack(w.z), w3 = unpack(w.w);
    return fmaf(w0.x, x0.x, fmaf(w0.y, x0.y, fmaf(w1.x, x0.z, w1.y * x0.w))) +
           fmaf(w2.x, x1.x, fmaf(w2.y, x1.y, fmaf(w3.x, x1.z, w3.y * x1.w)));
  }
}

/// Shared memory in floats from its start; `group` query heads share the state.
struct DecodeMemory {
  int phi_q, phi_k, z, denominators, partial, floats;  // the inputs of the map come first

  __host__ __device__ DecodeMemory(const Shape& shape, int parts, bool map) {
    const int group = shape.query_heads / shape.state_heads, features = shape.feature_size;
    phi_q = map ? (group + 1) * shape.head_size : 0;  // [group][features]
    phi_k = phi_q + group * features;                 // [features]
    z = phi_k + features;                             // [own features]
    denominators = z + features;                      // [group][parts]
    partial = denominators + group * parts;           // [kRound][kWarps][columns]
    floats = partial + kRound * kWarps * shape.head_size / parts;
  }
};

/// A cluster of `parts` blocks of threads serves one state: each owns a range of its columns and, for phi, z and the
/// denominators, a range of the features, so that everything is read and written once. The loads of S start first and wait in
/// registers (`kHeld` times 16 bytes a thread) while the features are computed and exchanged.
template <class Scalar, bool kMap, int kHeld>
__global__ void __launch_bounds__(kThreads, 1) decode_kernel(const __grid_constant__ DecodeArguments a) {
  extern __shared__ __align__(16) float memory[];
  const Shape& shape = a.shape;
  const int K = shape.feature_size, D = shape.head_size, group = shape.query_heads / shape.state_heads, parts = a.parts;
  const int tid = threadIdx.x, lane = tid & 31, warp = tid >> 5;
  const int item = blockIdx.x / parts, part = blockIdx.x % parts;  // the part is the rank in the cluster
  const int batch = item / shape.state_heads, state_head = item % shape.state_heads;
  const DecodeMemory at(shape, parts, kMap);
  float* const x = memory;  // [group + 1][D]: the queries, the key
  float* const phi_q = memory + at.phi_q;
  float* const phi_k = memory + at.phi_k;
  float* const z = memory + at.z;
  float* const denominators = memory + at.denominators;
  float* const partial = memory + at.partial;
  if (parts > 1) arrive_at_cluster();  // nobody writes to a block that has not begun

  const int columns = D / parts, units = columns / 4, unit = tid % units, row = tid / units, rows = kThreads / units;
  float4* const s = reinterpret_cast<float4*>(a.s + int64_t{item} * K * D + part * columns) + unit;
  float4 held[kHeld];
#pragma unroll
  for (int i = 0; i < kHeld; ++i) {
    const int feature = row + i * rows;
    held[i] = feature < K ? s[feature * (D / 4)] : float4{0.0F, 0.0F, 0.0F, 0.0F};
  }
  const int own_size = (K + parts - 1) / parts, own_begin = part * own_size, own = max(0, min(own_size, K - own_begin));
  const float z_before = tid < own ? a.z[int64_t{item} * K + own_begin + tid] : 0.0F;

  // 16 bytes of a row of W for this thread, some rows at a time; the next ones are on their way while one pass is computed.
  constexpr int kValues = 16 / sizeof(Scalar);
  const int lanes = D / kValues, in_row = lane % lanes, at_once = kThreads / lanes;  // lanes: 4 to 32, a power of two
  uint4 next_w = {0, 0, 0, 0};
  float next_b = 0.0F;
  const auto load_map = [&](int begin) {
    const int index = begin + tid / lanes;
    if (!kMap || index >= own) return;
    const int64_t feature = int64_t{state_head} * K + own_begin + index;
    next_w = *reinterpret_cast<const uint4*>(static_cast<const Scalar*>(a.weight) + feature * D + in_row * kValues);
    next_b = to_float(static_cast<const Scalar*>(a.bias)[feature]);
  };
  load_map(0);

  const auto input = [&](const View& view, int head) {
    return static_cast<const Scalar*>(view.data) + batch * view.batch_stride + head * view.head_stride;
  };
  const Scalar* const key = input(a.k, state_head / (shape.state_heads / shape.key_heads));
  const Scalar* const value = input(a.v, state_head / (shape.state_heads / shape.value_heads)) + part * columns + 4 * unit;
  const float v[4] = {to_float(value[0]), to_float(value[1]), to_float(value[2]), to_float(value[3])};
  {
    const int width = kMap ? D : K;
    float* const to_q = kMap ? x : phi_q;
    float* const to_k = kMap ? x + group * D : phi_k;
    for (int i = tid; i < group * width; i += kThreads) {
      to_q[i] = to_float(input(a.q, state_head * group + i / width)[i % width]);
    }
    for (int i = tid; i < width; i += kThreads) to_k[i] = to_float(key[i]);
  }
  __syncthreads();
  if (parts > 1) wait_for_cluster();

  if constexpr (kMap) {
    for (int begin = 0; begin < own; begin += at_once) {
      const int index = begin + tid / lanes, feature = own_begin + index;
      const bool exists = index < own;
      const uint4 unit_of_w = next_w;
      const float b = next_b;
      load_map(begin + at_once);
      for (int member = 0; member <= group; ++member) {
        float y = dot_unit<Scalar>(unit_of_w, x + member * D + in_row * kValues);
        for (int distance = lanes / 2; distance > 0; distance /= 2) y += __shfl_xor_sync(0xffffffffu, y, distance);
        const float phi = fmaxf(fmaf(member < group ? a.rule.scale : 1.0F, y, b), 0.0F);
        float* const to = member < group ? phi_q + member * K + feature : phi_k + feature;
        for (int rank = in_row; exists && rank < parts; rank += lanes) {
          if (rank == part) {
            *to = phi;
          } else {
            store_at_rank(to, rank, phi);
          }
        }
      }
    }
    __syncthreads();
  }
  if (tid < own) {
    const float z_now = z_before + phi_k[own_begin + tid];
    z[tid] = z_now;
    a.z[int64_t{item} * K + own_begin + tid] = z_now;
  }
  __syncthreads();
  for (int member = warp; member < group; member += kWarps) {
    float sum = 0.0F;
    for (int i = lane; i < own; i += 32) sum = fmaf(phi_q[member * K + own_begin + i], z[i], sum);
#pragma unroll
    for (int distance = 16; distance > 0; distance /= 2) sum += __shfl_xor_sync(0xffffffffu, sum, distance);
    float* const to = denominators + member * parts + part;
    if (lane == part) {
      *to = sum;
    } else if (lane < parts) {
      store_at_rank(to, lane, sum);
    }
  }
  if (parts > 1) {
    __syncwarp();
    arrive_at_cluster();
    wait_for_cluster();
  } else {
    __syncthreads();
  }

#pragma unroll
  for (int i = 0; i < kHeld; ++i) {
    const int feature = row + i * rows;
    if (feature < K) {
      const float phi = phi_k[feature];
      held[i] = {fmaf(phi, v[0], held[i].x), fmaf(phi, v[1], held[i].y), fmaf(phi, v[2], held[i].z), fmaf(phi, v[3], held[i].w)};
      s[feature * (D / 4)] = held[i];
    }
  }
  for (int first = 0; first < group; first += kRound) {
    const int members = min(kRound, group - first);
    for (int member = 0; member < members; ++member) {
      float4 sum = {0.0F, 0.0F, 0.0F, 0.0F};
#pragma unroll
      for (int i = 0; i < kHeld; ++i) {
        const int feature = row + i * rows;
        const float phi = feature < K ? phi_q[(first + member) * K + feature] : 0.0F;
        sum = {fmaf(phi, held[i].x, sum.x), fmaf(phi, held[i].y, sum.y), fmaf(phi, held[i].z, sum.z), fmaf(phi, held[i].w, sum.w)};
      }
      for (int distance = 16; distance >= units; distance /= 2) {
        sum.x += __shfl_xor_sync(0xffffffffu, sum.x, distance);
        sum.y += __shfl_xor_sync(0xffffffffu, sum.y, distance);
        sum.z += __shfl_xor_sync(0xffffffffu, sum.z, distance);
        sum.w += __shfl_xor_sync(0xffffffffu, sum.w, distance);
      }
      if (lane < units) {
        float* const to = partial + (member * kWarps + warp) * columns + 4 * unit;
        to[0] = sum.x, to[1] = sum.y, to[2] = sum.z, to[3] = sum.w;
      }
    }
    __syncthreads();
    for (int i = tid; i < members * columns; i += kThreads) {
      const int member = i / columns, column = i % columns;
      float numerator = 0.0F, denominator = a.rule.added;
#pragma unroll
      for (int w = 0; w < kWarps; ++w) numerator += partial[(member * kWarps + w) * columns + column];
      for (int rank = 0; rank < parts; ++rank) denominator += denominators[(first + member) * parts + rank];
      Scalar* const o = static_cast<Scalar*>(a.o.data) + batch * a.o.batch_stride +
                        (state_head * group + first + member) * a.o.head_stride + part * columns;
      o[column] = Scalar(numerator / fmaxf(denominator, a.rule.floor));
    }
    __syncthreads();
  }
}

template <class Scalar, bool kMap, int kHeld>
cudaError_t launch(const DecodeArguments& a, cudaStream_t stream) {
  const auto kernel = &decode_kernel<Scalar, kMap, kHeld>;
  const int bytes = DecodeMemory(a.shape, a.parts, kMap).floats * static_cast<int>(sizeof(float));
  const cudaError_t error = cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes);
  if (error != cudaSuccess) return error;
  cudaLaunchAttribute cluster = {};
  cluster.id = cudaLaunchAttributeClusterDimension;
  cluster.val.clusterDim.x = a.parts;
  cluster.val.clusterDim.y = cluster.val.clusterDim.z = 1;
  cudaLaunchConfig_t config = {};
  config.gridDim = dim3(a.shape.batch * a.shape.state_heads * a.parts);
  config.blockDim = dim3(kThreads);
  config.dynamicSmemBytes = bytes;
  config.stream = stream;
  config.attrs = &cluster;
  config.numAttrs = a.parts > 1 ? 1 : 0;
  return cudaLaunchKernelEx(&config, kernel, a);
}

template <class Scalar, bool kMap>
cudaError_t launch_held(const DecodeArguments& a, cudaStream_t stream) {
  const int rows = kThreads / (a.shape.head_size / a.parts / 4);
  const int held = (a.shape.feature_size + rows - 1) / rows;
  if (held <= 2) return launch<Scalar, kMap, 2>(a, stream);
  if (held <= 4) return launch<Scalar, kMap, 4>(a, stream);
  if (held <= 8) return launch<Scalar, kMap, 8>(a, stream);
  if (held <= 16) return launch<Scalar, kMap, 16>(a, stream);
  if (held <= 32) return launch<Scalar, kMap, 32>(a, stream);
  return cudaErrorInvalidValue;
}

template <class Scalar>
cudaError_t launch_map(const DecodeArguments& a, cudaStream_t stream) {
  return a.weight != nullptr ? launch_held<Scalar, true>(a, stream) : launch_held<Scalar, false>(a, stream);
}

}  // namespace

int decode_parts(const Shape& shape, const Device& device) {
  const int64_t items = int64_t{shape.batch} * shape.state_heads;
  int parts = 1;
  while (device.hopper && parts < kMaxCluster && shape.head_size / parts >= 2 * kMinColumns &&
         items * parts <= device.multiprocessors) {
    parts *= 2;
  }
  return parts;
}

cudaError_t decode_step(const DecodeArguments& a, bool bf16_inputs, cudaStream_t stream) {
  return bf16_inputs ? launch_map<bf16>(a, stream) : launch_map<float>(a, stream);
}

}  // namespace t2r::kernels::cuda
