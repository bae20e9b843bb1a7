#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

#include "model/kernels/draw_rule.h"

/// The choice of each row's next token. No LibTorch.
namespace t2r::kernels::cuda {

/// tokens[b] = the first of the largest logits of row b, or, unless the rule is greedy, what it
/// draws; also written to history[*position % history_rows][b]. A row that cannot be drawn from (a
/// NaN, the largest not finite) gives token 0 and -1 in the history.
struct DrawToken {
  int64_t rows = 0;
  int64_t vocabulary = 0;  ///< at most 2^23
  bool is_bf16 = false;
  const void* logits = nullptr;  ///< [rows, vocabulary]
  int64_t* tokens = nullptr;     ///< [rows]
  int64_t* history = nullptr;    ///< [history_rows, rows]
  int64_t history_rows = 0;
  const int64_t* position = nullptr;
  DrawRule rule;
  bool shares_rows = false;  ///< a cluster of blocks draws from a row (Hopper), else one block
  bool overlaps = false;     ///< the launch may overlap the end of the kernel before it (Hopper)
};

/// Launches on `stream`; one kernel, no allocation, no synchronisation. Deterministic; a drawn
/// token is the one that the CPU draws from the same logits.
cudaError_t draw_token(const DrawToken& arguments, cudaStream_t stream);

}  // namespace t2r::kernels::cuda
