#pragma once

#include "model/kernels/cuda/causal/causal_attention.h"
#include "model/kernels/cuda/decode/step_limits.h"

namespace t2r::kernels::cuda {

/// One token of softmax attention for a batch of sequences over a key/value cache: the token's key
/// and value become row `*length` of the cache, then o = softmax(scale q K^T) V over rows 0 to
/// `*length`. Inputs and o are [batch, head, column]: the views' token strides are not read. All
/// arithmetic is float32.
struct CacheAttention {
  int batch = 0, query_heads = 0, key_heads = 0;  ///< query_heads is a multiple of key_heads
  int head_size = 0;                              ///< a multiple of 8, at most kMaxCacheHead
  int64_t capacity =
      0;  ///< rows of the cache; a length outside 0..capacity-1 gives NaN and changes nothing
  bool is_bf16 = false;  ///< inputs, cache and o; else all of them are float32
  int parts = 1;         ///< blocks of threads that share a sequence's cache of one head
  float scale = 1.0F;
  View q, k, v, o;
  void* keys = nullptr;  ///< [batch, key_heads, capacity, head_size], 16-byte aligned
  void* values = nullptr;
  const int64_t* length = nullptr;  ///< one number on the device: tokens in the cache before this
                                    ///< one, the same for every sequence
  float* partial = nullptr;         ///< [slots][parts][queries of a slot][head_size + 4]
  int* tickets = nullptr;           ///< [slots], zeros before and after
  bool overlaps = false;  ///< the launch may overlap the end of the kernel before it (Hopper)
};

inline constexpr int kMaxCacheParts = 128;

/// What reads the keys and values of one head together: `queries` query heads at a time, in
/// `rounds` slots.
struct CacheGroup {
  int queries = 1, rounds = 1;
};
CacheGroup cache_group(int query_heads, int key_heads);

/// Blocks of threads per slot that fill the device: a cache of any length is divided among them.
int cache_attention_parts(int64_t slots, const Device& device);

/// Launches on `stream`; one kernel, no allocation, no synchronisation. Deterministic: parts are
/// added up in their order.
cudaError_t cache_attention(const CacheAttention& arguments, cudaStream_t stream);

}  // namespace t2r::kernels::cuda
