#pragma once

#include "model/kernels/cuda/causal/backward/columns.cuh"
#include "model/kernels/cuda/causal/backward/rows.cuh"
#include "model/kernels/cuda/causal/backward/sums.cuh"

namespace t2r::kernels::cuda {

/// Gradients of causal_forward_kernel. With a_ts = phi(q_t) . phi(k_s), D_t the denominator, r_t =
/// phi(q_t) / D_t:
///
///   e_t = -(d o_t . o_t) (0 where D_t is the floor)
///   d phi(q)_t = (sum_s (d o_t . v_s + e_t) phi(k)_s) / D_t = (inside the chunk + S d o_t + e_t z)
///       / D_t
///   d phi(k)_s = sum_t r_t (d o_t . v_s + e_t)              =  inside the chunk + dS v_s + dz
///   d v_s      = sum_t (r_t . phi(k)_s) d o_t               =  inside the chunk + dS^T phi(k)_s
///   dS = sum of r_t d o_t^T and dz = sum of r_t e_t over the later chunks
///
/// d o . o is recomputed from the very products that it must cancel against (d o . v_s summed with
/// the weights), so v's mean drops out, whatever its size; o itself is not read. Chunks are walked
/// from the last to the first; S comes from forward's records. Per chunk: features | rows: e, d q,
/// R | columns: d k, d v | dS, d W; barriers between the four.
template <int kHead, int kFeatures, int kChunk, bool kMap, int kStages, BackwardPart kPart>
__global__ void __launch_bounds__(kChunk * 2, 1)
    causal_backward_kernel(const __grid_constant__ CausalArguments a) {
  using Block = BackwardBlock<kHead, kFeatures, kChunk, kMap, kStages, kPart>;
  extern __shared__ __align__(128) unsigned char memory[];
  const Block block(a, memory);
  block.load_map();
  block.copy_state(block.chunk_end - 1);
  block.copy_chunk(block.chunk_end - 1);
  BackwardSums<Block> sums(block);
  if constexpr (Block::kColumnPart) sums.start();
  sums.publish_state();

  for (int index = block.chunk_end - 1; index >= block.chunk_begin; --index) {
    wait_copies<0>();
    if (index == block.chunk_end - 1) {
      __syncthreads();  // the map's weights are everybody's
    } else {
      __syncwarp();
    }
    const BackwardChunk chunk = block.chunk_at(index);
    typename Block::Features phi_q, own_phi_k;
    block.make_features(chunk, phi_q, own_phi_k);
    const BackwardRows<Block> rows(block, chunk);
    RowPair inverse;  // of the rows' denominators
    if constexpr (!Block::kRowPart) inverse = rows.load_terms();
    __syncthreads();
    if constexpr (kStages == 2) block.copy_chunk(index - 1);

    if constexpr (Block::kRowPart) inverse = rows.template run<kPart>(phi_q);
    rows.store_scaled(phi_q, inverse);
    __syncthreads();
    if constexpr (kStages == 2) block.copy_state(index - 1);

    if constexpr (Block::kColumnPart) {
      BackwardColumns<Block>(block, chunk).run(own_phi_k);
      __syncthreads();
    }

    sums.add(chunk);
    sums.publish_state();
    // d y of the keys and e are overwritten next.
    if constexpr (Block::kColumnPart || kStages == 1) __syncthreads();
    if constexpr (kStages == 1) {
      block.copy_chunk(index - 1);
      block.copy_state(index - 1);
    }
  }
  sums.template write<kPart>();
}

template <int kHead, int kFeatures, int kChunk, bool kMap, int kStages>
cudaError_t launch_staged_backward(const CausalArguments& a, cudaStream_t stream) {
  constexpr int kBytes = BackwardMemory<kHead, kFeatures, kChunk, kMap, kStages>::kBytes;
  static_assert(kBytes <= kHopperSharedBytes);
  const dim3 grid(a.shape.batch * a.shape.query_heads, a.plan.segments);
  const auto launch = [&](auto* kernel) {
    const cudaError_t error =
        cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, kBytes);
    if (error != cudaSuccess) return error;
    kernel<<<grid, kChunk * 2, kBytes, stream>>>(a);
    return cudaGetLastError();
  };
  if (a.plan.segments == 1)
    return launch(
        causal_backward_kernel<kHead, kFeatures, kChunk, kMap, kStages, BackwardPart::kAll>);
  cudaError_t error =
      launch(causal_backward_kernel<kHead, kFeatures, kChunk, kMap, kStages, BackwardPart::kRows>);
  if (error == cudaSuccess) error = scan_segments(a, true, stream);
  if (error != cudaSuccess) return error;
  return launch(
      causal_backward_kernel<kHead, kFeatures, kChunk, kMap, kStages, BackwardPart::kColumns>);
}

template <int kHead, int kFeatures, int kChunk, bool kMap>
cudaError_t launch_backward(const CausalArguments& a, cudaStream_t stream) {
  if constexpr (has_backward_stages<kHead, kFeatures, kChunk, kMap>(2)) {
    if (a.plan.stages == 2)
      return launch_staged_backward<kHead, kFeatures, kChunk, kMap, 2>(a, stream);
  }
  if constexpr (has_backward_stages<kHead, kFeatures, kChunk, kMap>(1)) {
    if (a.plan.stages == 1)
      return launch_staged_backward<kHead, kFeatures, kChunk, kMap, 1>(a, stream);
  }
  return cudaErrorInvalidValue;
}

}  // namespace t2r::kernels::cuda
