#include "model/kernels/cuda/pointwise/adamw.h"

#include <cuda_bf16.h>

#include <algorithm>
#include <cmath>

namespace t2r::kernels::cuda {
namespace {

using bf16 = __nv_bfloat16;

constexpr int kThreads = 256, kWarps = kThreads / 32;
constexpr int kWidth = 4;  // elements of a vector access: 16 bytes of float32, 8 of bfloat16

__device__ __forceinline__ float to_float(float x) {
  return x;
}
__device__ __forceinline__ float to_float(bf16 x) {
  return __bfloat162float(x);
}

__device__ __forceinline__ float4 load_vector(const float* from) {
  return *reinterpret_cast<const float4*>(from);
}
__device__ __forceinline__ float4 load_vector(const bf16* from) {
  const uint2 bits = *reinterpret_cast<const uint2*>(from);
  return {__uint_as_float(bits.x << 16),
          __uint_as_float(bits.x & 0xffff0000u),
          __uint_as_float(bits.y << 16),
          __uint_as_float(bits.y & 0xffff0000u)};
}
__device__ __forceinline__ void store_vector(float* to, const float4& x) {
  *reinterpret_cast<float4*>(to) = x;
}
__device__ __forceinline__ void store_vector(bf16* to, const float4& x) {
  const __nv_bfloat162 low = __floats2bfloat162_rn(x.x, x.y),
                       high = __floats2bfloat162_rn(x.z, x.w);
  *reinterpret_cast<uint2*>(to) = {reinterpret_cast<const uint32_t&>(low),
                                   reinterpret_cast<const uint32_t&>(high)};
}

/// Elements from the last boundary of vectors to `pointer`.
template <class T>
__device__ __forceinline__ int misalignment(const T* pointer) {
  return static_cast<int>(reinterpret_cast<uintptr_t>(pointer) / sizeof(T)) % kWidth;
}

/// How a range is walked: [0, head) one by one, [head, tail) in vectors, [tail, size) one by one.
struct Walk {
  int64_t head, tail;
};
template <class... Ts>
__device__ __forceinline__ Walk plan_walk(int64_t size, int first, const Ts*... others) {
  const bool together = ((others == nullptr || misalignment(others) == first) && ...);
  const int64_t head = together ? min(size, int64_t{(kWidth - first) % kWidth}) : size;
  return {head, head + (size - head) / kWidth * kWidth};
}

/// Calls `one(i)` for what is walked one by one and `vector(i)` for every vector; thread `index` of
/// `threads`.
template <class One, class Vector>
__device__ __forceinline__ void walk(
    const Walk& plan, int64_t size, int64_t index, int64_t threads, One one, Vector vector) {
  for (int64_t i = index; i < plan.head; i += threads) one(i);
  for (int64_t i = plan.head + kWidth * index; i < plan.tail; i += kWidth * threads) vector(i);
  for (int64_t i = plan.tail + index; i < size; i += threads) one(i);
}

/// The block's sum, in an order that depends on nothing but the number of threads; valid in thread
/// 0.
__device__ double block_sum(double x) {
  __shared__ double sums[kWarps];
#pragma unroll
  for (int distance = 16; distance > 0; distance /= 2)
    x += __shfl_xor_sync(0xffffffffu, x, distance);
  if (threadIdx.x % 32 == 0) sums[threadIdx.x / 32] = x;
  __syncthreads();
  double total = 0.0;
#pragma unroll
  for (int i = 0; i < kWarps; ++i) total += sums[i];
  return total;
}

__device__ __forceinline__ double square(float x) {
  return static_cast<double>(x) * static_cast<double>(x);
}

template <class Gradient>
__global__ void __launch_bounds__(kThreads)
    squares_kernel(const Gradient* gradients, int64_t count, double* partials) {
  constexpr int kInFlight = 4;  // vectors a thread has on their way
  const int64_t index = int64_t{blockIdx.x} * kThreads + threadIdx.x,
                threads = int64_t{kNormPartials} * kThreads;
  const int first = misalignment(gradients);
  const int64_t head = min(count, int64_t{(kWidth - first) % kWidth}),
                tail = head + (count - head) / kWidth * kWidth;
  double sums[kInFlight] = {};
  if (index < head) sums[0] += square(to_float(gradients[index]));
  if (index < count - tail) sums[0] += square(to_float(gradients[tail + index]));
  const int64_t stride = kWidth * threads;
  int64_t i = head + kWidth * index;
  for (; i + (kInFlight - 1) * stride < tail; i += kInFlight * stride) {
    float4 x[kInFlight];
#pragma unroll
    for (int j = 0; j < kInFlight; ++j) x[j] = load_vector(gradients + i + j * stride);
#pragma unroll
    for (int j = 0; j < kInFlight; ++j)
      sums[j] += (square(x[j].x) + square(x[j].y)) + (square(x[j].z) + square(x[j].w));
  }
  for (; i < tail; i += stride) {
    const float4 x = load_vector(gradients + i);
    sums[0] += (square(x.x) + square(x.y)) + (square(x.z) + square(x.w));
  }
  static_assert(kInFlight == 4);
  const double total = block_sum((sums[0] + sums[1]) + (sums[2] + sums[3]));
  if (threadIdx.x == 0) partials[blockIdx.x] = total;
}

/// As HostStep::update_parameters() decides.
__global__ void __launch_bounds__(kThreads)
    decide_kernel(const double* partials, double* control, double beta1, double beta2) {
  static_assert(kNormPartials % kThreads == 0);
  double sum = 0.0;
#pragma unroll
  for (int i = 0; i < kNormPartials / kThreads; ++i) sum += partials[i * kThreads + threadIdx.x];
  const double total = block_sum(sum);
  if (threadIdx.x != 0) return;
  const double normaliser = 1.0 / control[kNumTokens];
  const double norm = sqrt(total) * normaliser;
  control[kGradientNorm] = norm;
  if (!isfinite(norm) || !isfinite(control[kLossSum])) {
    control[kIsSkipped] = 1.0;
    control[kGradientScale] = 0.0;
    return;
  }
  const double clip_norm = control[kClipNorm], updates = control[kNumUpdates] + 1.0;
  control[kIsSkipped] = 0.0;
  control[kNumUpdates] = updates;
  control[kGradientScale] =
      normaliser * (clip_norm > 0.0 && norm > clip_norm ? clip_norm / norm : 1.0);
  control[kBiasCorrection1] = 1.0 - pow(beta1, updates);
  control[kBiasCorrection2Sqrt] = sqrt(1.0 - pow(beta2, updates));
}

/// What one element's update needs beside the element.
struct Coefficients {
  float gradient_scale, beta1, beta2, eps, decay, step_size, bias_correction2_sqrt;

  __device__ __forceinline__ float update(float parameter,
                                          float gradient,
                                          float& m,
                                          float& v) const {
    const float scaled = gradient * gradient_scale;
    m = beta1 * m + (1.0F - beta1) * scaled;
    v = beta2 * v + (1.0F - beta2) * scaled * scaled;
    return parameter * decay - step_size * m / (sqrtf(v) / bias_correction2_sqrt + eps);
  }
};

template <class Gradient, bool kValues>
__global__ void __launch_bounds__(kThreads) adamw_kernel(const __grid_constant__ AdamWArguments a) {
  if (a.control[kIsSkipped] != 0.0) return;
  const int64_t* const span = a.spans + 3 * int64_t{blockIdx.x};
  const int64_t begin = max(int64_t{0}, span[0]), size = min(a.count, span[1]) - begin,
                flags = span[2];
  if (size <= 0) return;
  const float rate =
      static_cast<float>(a.control[(flags & kSpanIsMap) != 0 ? kMapLearningRate : kLearningRate]);
  const float weight_decay = (flags & kSpanDecays) != 0 ? static_cast<float>(a.weight_decay) : 0.0F;
  const Coefficients to_next{
      .gradient_scale = static_cast<float>(a.control[kGradientScale]),
      .beta1 = static_cast<float>(a.beta1),
      .beta2 = static_cast<float>(a.beta2),
      .eps = static_cast<float>(a.eps),
      .decay = 1.0F - rate * weight_decay,
      .step_size = rate / static_cast<float>(a.control[kBiasCorrection1]),
      .bias_correction2_sqrt = static_cast<float>(a.control[kBiasCorrection2Sqrt])};
  float* const master = a.master + begin;
  float* const first = a.first_moment + begin;
  float* const second = a.second_moment + begin;
  const Gradient* const gradients = static_cast<const Gradient*>(a.gradients) + begin;
  bf16* const values = kValues ? static_cast<bf16*>(a.values) + begin : nullptr;

  const auto one = [&](int64_t i) {
    float m = first[i], v = second[i];
    const float next = to_next.update(master[i], to_float(gradients[i]), m, v);
    first[i] = m;
    second[i] = v;
    master[i] = next;
    if constexpr (kValues) values[i] = __float2bfloat16_rn(next);
  };
  const auto vector = [&](int64_t i) {
    const float4 gradient = load_vector(gradients + i);
    float4 m = load_vector(first + i), v = load_vector(second + i), next = load_vector(master + i);
    next.x = to_next.update(next.x, gradient.x, m.x, v.x);
    next.y = to_next.update(next.y, gradient.y, m.y, v.y);
    next.z = to_next.update(next.z, gradient.z, m.z, v.z);
    next.w = to_next.update(next.w, gradient.w, m.w, v.w);
    store_vector(first + i, m);
    store_vector(second + i, v);
    store_vector(master + i, next);
    if constexpr (kValues) store_vector(values + i, next);
  };
  walk(plan_walk(size, misalignment(master), first, second, gradients, values),
       size,
       threadIdx.x,
       kThreads,
       one,
       vector);
}

}  // namespace

cudaError_t gradient_norm(const GradientNormArguments& a, cudaStream_t stream) {
  if (a.bf16_gradients) {
    squares_kernel<<<kNormPartials, kThreads, 0, stream>>>(
        static_cast<const bf16*>(a.gradients), a.count, a.partials);
  } else {
    squares_kernel<<<kNormPartials, kThreads, 0, stream>>>(
        static_cast<const float*>(a.gradients), a.count, a.partials);
  }
  decide_kernel<<<1, kThreads, 0, stream>>>(a.partials, a.control, a.beta1, a.beta2);
  return cudaGetLastError();
}

cudaError_t adamw(const AdamWArguments& a, cudaStream_t stream) {
  if (a.num_spans == 0 || a.count == 0) return cudaSuccess;
  if (a.num_spans > 0x7fffffff) return cudaErrorInvalidValue;
  const dim3 grid(static_cast<unsigned>(a.num_spans));
  if (a.bf16_gradients) {
    if (a.values != nullptr) {
      adamw_kernel<bf16, true><<<grid, kThreads, 0, stream>>>(a);
    } else {
      adamw_kernel<bf16, false><<<grid, kThreads, 0, stream>>>(a);
    }
  } else if (a.values != nullptr) {
    adamw_kernel<float, true><<<grid, kThreads, 0, stream>>>(a);
  } else {
    adamw_kernel<float, false><<<grid, kThreads, 0, stream>>>(a);
  }
  return cudaGetLastError();
}

}  // namespace t2r::kernels::cuda
