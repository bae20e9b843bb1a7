#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

/// Rows of a table by token, and the sum of gradients by token. No LibTorch.
namespace t2r::kernels::cuda {

/// out[i] = weight[tokens[i]] + position[i % length]; a token that the table does not have gives
/// NaN.
struct EmbeddingForward {
  int64_t num_tokens = 0;  ///< a multiple of length
  int64_t length = 0;      ///< tokens per sequence
  int64_t width = 0, vocabulary = 0;
  bool is_bf16 = false;
  const void* weight = nullptr;  ///< [vocabulary, width]
  const int64_t* tokens = nullptr;
  const void* position = nullptr;  ///< [length, width] or null
  void* out = nullptr;             ///< [num_tokens, width]
};

inline constexpr int kEmbeddingPiece =
    64;  ///< rows that one warp adds up, in float32, in the order of the batch

/// grad_weight[v] = sum of grad_out[i] where tokens[i] = v. The tokens come sorted, with the places
/// they had; of a token that occurs more often than kEmbeddingPiece, pieces are summed side by side
/// and then added in order: the result depends on nothing but the input.
struct EmbeddingBackward {
  int64_t num_tokens = 0;  ///< less than 2^31
  int64_t width = 0, vocabulary = 0;
  bool is_bf16 = false;
  const int* sorted = nullptr;      ///< ascending
  const int64_t* places = nullptr;  ///< stable: ascending where tokens are equal
  const void* grad_out = nullptr;   ///< [num_tokens, width]
  void* grad_weight =
      nullptr;               ///< [vocabulary, width], zeros; rows of tokens that occur are written
  float* pieces = nullptr;   ///< [2 windows][width], windows = ceil(num_tokens / kEmbeddingPiece)
  int* long_runs = nullptr;  ///< [windows], -1: where runs of more than one piece begin
};

/// grad_position = sum over the batch of grad_out, [batch, length * width] -> [length * width].
struct PositionBackward {
  int64_t batch = 0, columns = 0;
  bool is_bf16 = false;
  const void* grad_out = nullptr;
  void* grad_position = nullptr;
};

/// Launch on `stream`; no allocation, no synchronisation; deterministic.
cudaError_t embedding_forward(const EmbeddingForward& arguments, cudaStream_t stream);
cudaError_t embedding_backward(const EmbeddingBackward& arguments, cudaStream_t stream);
cudaError_t position_backward(const PositionBackward& arguments, cudaStream_t stream);

}  // namespace t2r::kernels::cuda
