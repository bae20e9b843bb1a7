#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

/// Causal linear attention on NVIDIA GPUs (sm_80 and later), fused with the T2R map. No LibTorch:
/// the operators that callers use are in model/ops.
namespace t2r::kernels::cuda {

/// A [batch, token, head, column] tensor in device memory; strides in elements, columns contiguous.
struct View {
  void* data = nullptr;
  int64_t batch_stride = 0;
  int64_t token_stride = 0;
  int64_t head_stride = 0;
};

struct Shape {
  int batch = 0;
  int length = 0;
  int query_heads = 0;
  int state_heads = 0;   ///< maps, or heads of the given key features; query_heads is a multiple
  int key_heads = 0;     ///< heads of k; state_heads is a multiple
  int value_heads = 0;   ///< heads of v; state_heads is a multiple
  int head_size = 0;     ///< columns of v (and, with a map, of q and k): 32, 64 or 128
  int feature_size = 0;  ///< 1..128
};

/// o = num / max(phi(q) . z + added, floor); phi(x) = relu(scale W x + b), scale = 1 for keys.
struct Rule {
  float scale = 1.0F;
  float floor = 0.0F;
  float added = 0.0F;
};

/// What the choice of a kernel depends on beside the shape.
struct Device {
  int multiprocessors = 1;
  bool hopper = false;   ///< wgmma: compute capability 9.0 and a build for sm_90a
  int shared_bytes = 0;  ///< that a block can have, rounded down to what kernels are laid out for
                         ///< (causal_memory.h)
};

enum class Engine {
  kNone,  ///< no tensor-core kernel serves the shape
  kSm80,  ///< mma.sync: every GPU since Ampere that has the shared memory (causal_memory.h), every
          ///< shape but 128 x 128
  kSm90,  ///< wgmma: head size 64 or 128, at most 64 features, no document boundaries
};

/// How the work is cut: `chunk` tokens at a time, `segments` blocks of threads along one sequence.
struct Plan {
  Engine engine = Engine::kNone;
  int padded_features = 0;
  int chunk = 0;
  int chunks = 0;  ///< per sequence
  int stages = 0;  ///< chunks of inputs that the portable backward keeps in flight
  int segments = 1;
  int chunks_per_segment = 0;
  int64_t state_record_bytes =
      0;  ///< one saved state: S (what its kernels hold of it, in bf16), z in float32
  int64_t sums_floats = 0;  ///< one segment's S and z in float32
};

/// Everything that the forward and the backward read and write. Null means: not given, or not
/// wanted.
struct CausalArguments {
  Shape shape;
  Rule rule;
  Plan plan;
  View q, k, v, o;               ///< with a map: q, k are inputs of the map; without: the features
  const void* weight = nullptr;  ///< [state_heads, feature_size, head_size]; null: no map
  const void* bias = nullptr;    ///< [state_heads, feature_size]
  const int* document_start = nullptr;  ///< [batch, length]: index of the first token of each
                                        ///< token's document; negative: before this call
  const float* initial_s = nullptr;     ///< [batch, state_heads, feature_size, head_size]
  const float* initial_z = nullptr;     ///< [batch, state_heads, feature_size]
  float* final_s = nullptr;
  float* final_z = nullptr;
  unsigned char* states =
      nullptr;  ///< [batch, query_heads, chunks] records; written by forward, read by backward
  float* sums = nullptr;  ///< [batch, query_heads, segments, sums_floats], if segments > 1

  // Backward.
  View grad_o, grad_q, grad_k, grad_v;  ///< grad_k and grad_v have query_heads heads
  const float* grad_final_s = nullptr;
  const float* grad_final_z = nullptr;
  float* grad_initial_s = nullptr;  ///< [batch, query_heads, feature_size, head_size]
  float* grad_initial_z = nullptr;
  float* grad_weight = nullptr;  ///< [batch, query_heads, segments, (2,) feature_size (head_size +
                                 ///< 2)]: parts of d W, d b of q, of k
  float* row_values =
      nullptr;  ///< [batch, query_heads, 2, length], if segments > 1: denominator, e
};

/// How a problem of this shape is computed; forward and backward of one problem agree on everything
/// but `segments`.
Plan plan_causal(
    const Shape& shape, bool has_map, bool documents, bool backward, const Device& device);

/// d W and d b of the map: the sums of what every block of threads left behind.
struct PartsSum {
  const float* parts = nullptr;  ///< CausalArguments::grad_weight
  int batch = 0, query_heads = 0, state_heads = 0, parts_per_item = 0, features = 0, head_size = 0;
  void* grad_weight = nullptr;  ///< bf16 [state_heads, features, head_size]
  void* grad_bias = nullptr;    ///< bf16 [state_heads, features]
};

/// Launch on `stream`; nothing is allocated or synchronised, so the calls can be captured in a
/// graph.
cudaError_t causal_forward_bf16(const CausalArguments& arguments, cudaStream_t stream);
cudaError_t causal_backward_bf16(const CausalArguments& arguments, cudaStream_t stream);
cudaError_t sum_parts(const PartsSum& arguments, cudaStream_t stream);

}  // namespace t2r::kernels::cuda
