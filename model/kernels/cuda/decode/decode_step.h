#pragma once

#include "model/kernels/cuda/causal/causal_attention.h"

namespace t2r::kernels::cuda {

/// How states are given to warps: each holds 128 `held` values of one (whole features), a block of
/// threads serves `states_per_block` sequences of one head.
struct DecodePlan {
  int held = 16;  ///< 4 or 16: registers of 16 bytes a thread
  int warps_per_state = 1;
  int states_per_block = 1;
  int shared_bytes = 0;
  bool early = false;  ///< starts while the kernel before it ends
};

/// One token for a batch of sequences: S += phi(k) v^T, z += phi(k), then o = phi(q) S / max(phi(q)
/// . z + added, floor). Inputs and o are [batch, head, column]: the views' token strides are not
/// read. All arithmetic is float32.
struct DecodeArguments {
  Shape shape;  ///< length is 1; head size 32, 64 or 128
  Rule rule;
  DecodePlan plan;
  View q, k, v, o;  ///< with a map: q, k are inputs of the map; without: the features. Heads of o
                    ///< are 16-byte aligned
  const void* weight =
      nullptr;  ///< [state_heads, feature_size, head_size], 16-byte aligned; null: no map
  const void* bias = nullptr;  ///< [state_heads, feature_size]
  float* s = nullptr;  ///< [batch, state_heads, feature_size, head_size], 16-byte aligned; read and
                       ///< written once
  float* z = nullptr;  ///< [batch, state_heads, feature_size]
};

inline constexpr int kMaxDecodeGroup =
    64;  ///< query heads per state: what Hopper's shared memory holds

/// Few states get many warps each, for latency; many get as few as hold them, so that their loads
/// overlap other warps' work. A plan may have more `shared_bytes` than the device: then no kernel
/// serves the shape there.
DecodePlan plan_decode(const Shape& shape, bool map, bool bf16_inputs, const Device& device);

/// Launches on `stream`; one kernel, no allocation, no synchronisation. `bf16_inputs`: so are map
/// and o, else all of them are float32.
cudaError_t decode_step(const DecodeArguments& arguments, bool bf16_inputs, cudaStream_t stream);

}  // namespace t2r::kernels::cuda
