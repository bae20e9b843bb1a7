#pragma once

#include "model/kernels/cuda/causal/causal_attention.h"

namespace t2r::kernels::cuda {

/// Linear attention from queries to a source that has been read before (an encoder's output), fused
/// with the T2R map: S = sum of phi(k) v^T and z = sum of phi(k) over the source, o = phi(q) S /
/// max(n + added, floor), n = |phi(q) . z|. Nothing depends on an order of tokens: source and
/// queries are cut freely over blocks of threads.

/// How the tokens of one sequence and head are cut: `segments` blocks of threads,
/// `chunks_per_segment` chunks each.
struct Cut {
  int chunks = 0;
  int segments = 0;
  int chunks_per_segment = 0;
};

struct CrossPlan {
  int padded_features = 0;  ///< 0: no tensor-core kernel serves the shape on this device
  Cut queries, source;
  bool whole = false;  ///< one launch: the blocks that share a state (a cluster, or one block) add
                       ///< it up among themselves
  bool sums_again = false;  ///< backward adds the source up again instead of reading a record
  bool early = false;       ///< kernels start while the one before them ends
  int groups = 0;           ///< of sequences
  int group_size = 1;       ///< sequences that one block serves one after the other
  int64_t record_bytes =
      0;  ///< one state for the tensor cores: S as hi and lo bf16 images, z in float32
  int64_t sums_floats = 0;  ///< one block's share of S and z, or of d W and d b, in float32
};

/// Everything that the forward and the backward read and write. Null means: not given, or not
/// wanted.
struct CrossArguments {
  Shape shape;  ///< length is the queries'
  int source_length = 0;
  Rule rule;
  bool absolute = true;  ///< false: n = phi(q) . z
  CrossPlan plan;
  View q, k, v, o;               ///< with a map: q, k are inputs of the map; without: the features
  const void* weight = nullptr;  ///< [state_heads, feature_size, head_size]; null: no map
  const void* bias = nullptr;    ///< [state_heads, feature_size]
  const unsigned char* source_mask =
      nullptr;  ///< [batch, source_length]: 0 for padding, whose k and v are not read
  unsigned char* state = nullptr;  ///< [batch, state_heads] records; written by forward, read by
                                   ///< backward unless it adds up again
  float* sums = nullptr;  ///< not whole: [batch, state_heads, segments, sums_floats], of the source
                          ///< or, backward, the queries

  // Backward.
  View grad_o, grad_q, grad_k, grad_v;  ///< grad_k and grad_v have state_heads heads
  unsigned char* grad_state = nullptr;  ///< not whole: [batch, state_heads] records
  float* query_parts = nullptr;  ///< [groups, state_heads, queries.segments, sums_floats]: d W, d b
  float* source_parts =
      nullptr;                  ///< not whole: [groups, state_heads, source.segments, sums_floats]
  void* grad_weight = nullptr;  ///< bf16, like weight
  void* grad_bias = nullptr;
};

/// Two blocks of threads per multiprocessor, if there are so many chunks; `items` sequences and
/// heads.
Cut cut_tokens(int length, int chunk, int items, int multiprocessors);

/// Forward and backward may be cut differently.
CrossPlan plan_cross(
    const Shape& shape, int source_length, bool has_map, bool backward, const Device& device);

/// Launch on `stream`; nothing is allocated or synchronised, so the calls can be captured in a
/// graph.
cudaError_t cross_forward_bf16(const CrossArguments& arguments, cudaStream_t stream);
cudaError_t cross_backward_bf16(const CrossArguments& arguments, cudaStream_t stream);

}  // namespace t2r::kernels::cuda
