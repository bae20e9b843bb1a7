#pragma once

#include "model/kernels/cuda/causal/causal_common.cuh"
#include "model/kernels/cuda/sm90/bulk_copy_sm90.cuh"
#include "model/kernels/cuda/sm90/tensor_core_sm90.cuh"

namespace t2r::kernels::cuda::sm90 {

constexpr int kHead = 64;        // head size, or columns of a tile of it
constexpr int kWalkTokens = 64;  // of a chunk

/// Bytes of a saved state: S - z m^T transposed in bfloat16 ([kHeadSize][kFeatures]), then z and m
/// in float32. m is the mean of all values so far, weighted as the features' sum weighs them: what
/// is left of S has their spread only and loses little in the rounding, however far from zero they
/// are.
template <int kHeadSize, int kFeatures>
inline constexpr int kRecordBytes = 2 * kFeatures* kHeadSize + 4 * kFeatures + 4 * kHeadSize;
/// Where z lies; of head size 64 behind m, which lies as high and low halves in the first rows of a
/// tile of its own.
template <int kHeadSize, int kFeatures>
inline constexpr int kRecordZ = 2 * kFeatures* kHeadSize + (kHeadSize == kHead ? 4 * kHeadSize : 0);

constexpr int round_up(int bytes, int to) {
  return (bytes + to - 1) / to * to;
}

/// How the copy engine sees the tensors: boxes of a chunk's tokens and at most 64 columns; o of
/// head size 128 is written in boxes of 16 tokens, a warp's rows.
struct TensorMaps {
  CUtensorMap q, k, v, o;
  CUtensorMap weight;  // of head size 64: a head's W, zeros behind its features
  CUtensorMap grad_o, grad_q, grad_k, grad_v;
};

/// Where the state that a walk starts from lies, or its gradient: what the scan has left, of
/// segments of a sequence, or else the given one, if any. S is [features][kHeadSize].
struct StartState {
  const float *s = nullptr, *z = nullptr;
};
template <int kHeadSize>
__device__ __forceinline__ StartState start_state(const CausalArguments& a,
                                                  const float* given_s,
                                                  const float* given_z,
                                                  int item,
                                                  int segment,
                                                  int batch,
                                                  int state_head) {
  StartState from;
  const int features = a.shape.feature_size;
  if (a.plan.segments > 1) {
    from.s = a.sums + (int64_t{item} * a.plan.segments + segment) * a.plan.sums_floats;
    from.z = from.s + features * kHeadSize;
  } else if (given_s != nullptr) {
    const int64_t state = int64_t{batch} * a.shape.state_heads + state_head;
    from.s = given_s + state * features * kHeadSize;
    from.z = given_z + state * features;
  }
  return from;
}

/// Tensor maps of what `a` names; defined in causal_sm90.cu.
cudaError_t make_tensor_maps(const CausalArguments& a, bool backward, TensorMaps& maps);

using Kernel = void(CausalArguments, TensorMaps);

/// Launches one kernel, or, where the sequences are cut, the kernel that sums segments, the scan
/// and the kernel.
inline cudaError_t launch_forward_kernels(Kernel* sums_only,
                                          Kernel* whole,
                                          int threads,
                                          int bytes,
                                          const CausalArguments& a,
                                          cudaStream_t stream) {
  TensorMaps maps;
  cudaError_t error = make_tensor_maps(a, false, maps);
  if (error != cudaSuccess) return error;
  const auto launch = [&](Kernel* kernel, int segments) {
    const cudaError_t failed =
        cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes);
    if (failed != cudaSuccess) return failed;
    return launch_early(true,
                        kernel,
                        dim3(a.shape.batch * a.shape.query_heads, segments),
                        threads,
                        bytes,
                        stream,
                        a,
                        maps);
  };
  if (a.plan.segments > 1) {
    error = launch(sums_only, a.plan.segments - 1);
    if (error == cudaSuccess) error = scan_segments(a, false, stream);
    if (error != cudaSuccess) return error;
  }
  return launch(whole, a.plan.segments);
}

/// Launches one kernel, or, where the sequences are cut, the kernels of the two parts with the scan
/// in between.
inline cudaError_t launch_backward_kernels(bool early,
                                           Kernel* all,
                                           Kernel* rows,
                                           Kernel* columns,
                                           int threads,
                                           int bytes,
                                           const CausalArguments& a,
                                           cudaStream_t stream) {
  TensorMaps maps;
  cudaError_t error = make_tensor_maps(a, true, maps);
  if (error != cudaSuccess) return error;
  const auto launch = [&](Kernel* kernel) {
    const cudaError_t failed =
        cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes);
    if (failed != cudaSuccess) return failed;
    return launch_early(early,
                        kernel,
                        dim3(a.shape.batch * a.shape.query_heads, a.plan.segments),
                        threads,
                        bytes,
                        stream,
                        a,
                        maps);
  };
  if (a.plan.segments == 1) return launch(all);
  error = launch(rows);
  if (error == cudaSuccess) error = scan_segments(a, true, stream);
  return error == cudaSuccess ? launch(columns) : error;
}

}  // namespace t2r::kernels::cuda::sm90
