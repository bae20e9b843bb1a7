#pragma once

#include "model/kernels/cuda/causal_attention.h"

namespace t2r::kernels::cuda {

/// One token for a batch of sequences: S += phi(k) v^T, z += phi(k), then o = phi(q) S / max(phi(q) . z + added, floor).
/// Inputs and o are [batch, head, column]: the views' token strides are not read. All arithmetic is float32.
struct DecodeArguments {
  Shape shape;  ///< length is 1; head size 32, 64 or 128
  Rule rule;
  int parts = 1;               ///< blocks of threads per state, each with as many of its columns
  View q, k, v, o;             ///< with a map: q, k are inputs of the map; without: the features
  const void* weight = nullptr;  ///< [state_heads, feature_size, head_size], 16-byte aligned; null: no map
  const void* bias = nullptr;    ///< [state_heads, feature_size]
  float* s = nullptr;  ///< [batch, state_heads, feature_size, head_size], 16-byte aligned; read and written once
  float* z = nullptr;  ///< [batch, state_heads, feature_size]
};

inline constexpr int kMaxDecodeGroup = 64;  ///< query heads per state: what shared memory holds

/// Blocks of threads per state: 1 unless the device is Hopper (they exchange features within a cluster).
int decode_parts(const Shape& shape, const Device& device);

/// Launches on `stream`; one kernel, no allocation, no synchronisation. `bf16_inputs`: so are map and o, else all
/// of them are float32.
cudaError_t decode_step(const DecodeArguments& arguments, bool bf16_inputs, cudaStream_t stream);

}  // namespace t2r::kernels::cuda
