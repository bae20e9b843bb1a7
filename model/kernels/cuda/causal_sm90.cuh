#pragma once

#include "model/kernels/cuda/bulk_copy_sm90.cuh"
#include "model/kernels/cuda/causal_common.cuh"
#include "model/kernels/cuda/tensor_core_sm90.cuh"

namespace t2r::kernels::cuda::sm90 {

constexpr int kHead = 64;        // head size, or columns of a tile of it
constexpr int kWalkTokens = 64;  // of a chunk

/// Bytes of a saved state: S - z m^T transposed in bfloat16 ([kHeadSize][kFeatures]), then z and m in float32. m is the mean of all values
/// so far, weighted as the features' sum weighs them: what is left of S has their spread only and loses little in the rounding,
/// however far from zero they are.
template <int kHeadSize, int kFeatures>
inline constexpr int kRecordBytes = 2 * kFeatures * kHeadSize + 4 * kFeatures + 4 * kHeadSize;
/// Where z lies; of head size 64 behind m, which lies as high and low halves in the first rows of a tile of its own.
template <int kHeadSize, int kFeatures>
inline constexpr int kRecordZ = 2 * kFeatures * kHeadSize + (kHeadSize == kHead ? 4 * kHeadSize : 0);

constexpr int round_up(int bytes, int to) { return (bytes + to - 1) / to * to; }

/// How the copy engine sees the tensors: boxes of a chunk's tokens and at most 64 columns; o of head size 128 is written in boxes of 16
/// tokens, a warp's rows.
struct TensorMaps {
  CUtensorMap q, k, v, o;
  CUtensorMap weight;  // of head size 64: a head's W, zeros behind its features
  CUtensorMap grad_o, grad_q, grad_k, grad_v;
};

/// Whether value i of x[n], of the accumulators of a product [row][column], stands in a column that is not after its row; `low` is the
/// first of the lane's two rows.
__device__ __forceinline__ bool is_seen(int n, int i, int low, int lane) {
  return n * 8 + (i & 1) <= (i < 2 ? low : low + 8) - 2 * (lane & 3);
}

/// What a warp's rows see of a chunk's 64 columns, for weights packed in pairs as operands of the next product: pair 2 i + h has the columns
/// 8 i and on of rows `low` (h = 0) or `high`. Only where the diagonal runs do lanes differ.
class PairMasks {
 public:
  /// Rows see what is not after them, or not before them.
  __device__ __forceinline__ PairMasks(bool not_after, int warp, int lane) {
    const int row = lane / 4, column = 2 * (lane & 3);
    const uint32_t first = not_after ? column <= row : column >= row, second = not_after ? column + 1 <= row : column + 1 >= row;
    const uint32_t diagonal = first * 0xffffu | second * 0xffff0000u, left = not_after ? ~0u : 0u;
#pragma unroll
    for (int i = 0; i < 9; ++i) masks_[i] = i - 1 < 2 * warp ? left : i - 1 > 2 * warp ? ~left : diagonal;
  }
  __device__ __forceinline__ void clear(uint32_t (&pairs)[4][4]) const {
#pragma unroll
    for (int n = 0; n < 8; ++n)
#pragma unroll
      for (int half = 0; half < 2; ++half) pairs[n / 2][2 * (n & 1) + half] &= masks_[n + 1 - half];
  }

 private:
  uint32_t masks_[9];  // of columns 8 (i - 1) and on for `low`; `high` lies eight rows, so one mask, further
};

/// What the launch for the rows has left for the launch for the columns, of this lane's rows `low` and low + 8 behind `first`.
struct RowValues {
  float denominator_low = 1.0F, denominator_high = 1.0F, e_low = 0.0F, e_high = 0.0F;

  __device__ __forceinline__ RowValues(const float* denominators, const float* e, int first, int low, int length) {
    if (first + low < length) {
      denominator_low = denominators[first + low];
      e_low = e[first + low];
    }
    if (first + low + 8 < length) {
      denominator_high = denominators[first + low + 8];
      e_high = e[first + low + 8];
    }
  }
};

/// Tensor maps of what `a` names; defined in causal_sm90.cu.
cudaError_t make_tensor_maps(const CausalArguments& a, bool backward, TensorMaps& maps);

using Kernel = void(CausalArguments, TensorMaps);

/// Launches one kernel, or, where the sequences are cut, the kernel that sums segments, the scan and the kernel.
inline cudaError_t launch_forward_kernels(Kernel* sums_only, Kernel* whole, int threads, int bytes, const CausalArguments& a, cudaStream_t stream) {
  TensorMaps maps;
  cudaError_t error = make_tensor_maps(a, false, maps);
  if (error != cudaSuccess) return error;
  const auto launch = [&](Kernel* kernel, int segments) {
    const cudaError_t failed = cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes);
    if (failed != cudaSuccess) return failed;
    return launch_early(true, kernel, dim3(a.shape.batch * a.shape.query_heads, segments), threads, bytes, stream, a, maps);
  };
  if (a.plan.segments > 1) {
    error = launch(sums_only, a.plan.segments - 1);
    if (error == cudaSuccess) error = scan_segments(a, false, stream);
    if (error != cudaSuccess) return error;
  }
  return launch(whole, a.plan.segments);
}

/// Launches one kernel, or, where the sequences are cut, the kernels of the two parts with the scan in between.
inline cudaError_t launch_backward_kernels(bool early, Kernel* all, Kernel* rows, Kernel* columns, int threads, int bytes, const CausalArguments& a, cudaStream_t stream) {
  TensorMaps maps;
  cudaError_t error = make_tensor_maps(a, true, maps);
  if (error != cudaSuccess) return error;
  const auto launch = [&](Kernel* kernel) {
    const cudaError_t failed = cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes);
    if (failed != cudaSuccess) return failed;
    return launch_early(early, kernel, dim3(a.shape.batch * a.shape.query_heads, a.plan.segments), threads, bytes, stream, a, maps);
  };
  if (a.plan.segments == 1) return launch(all);
  error = launch(rows);
  if (error == cudaSuccess) error = scan_segments(a, true, stream);
  return error == cudaSuccess ? launch(columns) : error;
}

}  // namespace t2r::kernels::cuda::sm90
