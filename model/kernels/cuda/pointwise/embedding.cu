#include "model/kernels/cuda/pointwise/embedding.h"

#include "model/kernels/cuda/rows.cuh"

namespace t2r::kernels::cuda {
namespace {

constexpr int kThreads = 256, kWarps = kThreads / 32;
constexpr int kPiece = kEmbeddingPiece;

template <class Scalar, int kWidth>
__global__ void __launch_bounds__(kThreads)
    forward_kernel(const __grid_constant__ EmbeddingForward a) {
  const int64_t index = blockIdx.x * int64_t{kThreads} + threadIdx.x, per_row = a.width / kWidth;
  if (index >= a.num_tokens * per_row) return;
  const int64_t row = quotient(index, per_row), column = (index - row * per_row) * kWidth,
                token = a.tokens[row];
  float values[kWidth];
  if (token >= 0 && token < a.vocabulary) {
    load(values, static_cast<const Scalar*>(a.weight) + token * a.width + column);
  } else {
#pragma unroll
    for (int j = 0; j < kWidth; ++j) values[j] = NAN;
  }
  if (a.position != nullptr) {
    float added[kWidth];
    load(added,
         static_cast<const Scalar*>(a.position) +
             (row - quotient(row, a.length) * a.length) * a.width + column);
#pragma unroll
    for (int j = 0; j < kWidth; ++j) values[j] += added[j];
  }
  store(static_cast<Scalar*>(a.out) + row * a.width + column, values);
}

/// The first place of `token` in sorted[0, end], where sorted[end] is this token.
__device__ int first_place(const int* sorted, int end, int token) {
  int low = 0, high = end;
  while (low < high) {
    const int middle = low + (high - low) / 2;
    if (sorted[middle] < token) {
      low = middle + 1;
    } else {
      high = middle;
    }
  }
  return low;
}

/// One past the last place of `token` in sorted[begin, size), where sorted[begin] is this token.
__device__ int last_place(const int* sorted, int begin, int size, int token) {
  int low = begin + 1, high = size;
  while (low < high) {
    const int middle = low + (high - low) / 2;
    if (sorted[middle] == token) {
      low = middle + 1;
    } else {
      high = middle;
    }
  }
  return low;
}

/// In a window of kPiece places begins at most one first piece of a long run, and at most one later
/// piece: of another run, which ends there.
__device__ __forceinline__ int64_t slot_of(int place, bool first) {
  return 2 * int64_t{place / kPiece} + (first ? 1 : 0);
}

/// A warp per place in the sorted order and 32 vectors of columns; it works if a piece begins
/// there.
template <class Scalar, int kWidth>
__global__ void __launch_bounds__(kThreads)
    pieces_kernel(const __grid_constant__ EmbeddingBackward a) {
  const int size = static_cast<int>(a.num_tokens), lane = threadIdx.x & 31;
  const int64_t global_place = blockIdx.x * int64_t{kWarps} + (threadIdx.x >> 5);
  if (global_place >= size) return;
  const int place = static_cast<int>(global_place), token = a.sorted[place];
  if (token < 0 || token >= a.vocabulary) return;
  const bool first = place == 0 || a.sorted[place - 1] != token;
  if (!first) {
    if (place < kPiece || a.sorted[place - kPiece] != token) return;
    if ((place - first_place(a.sorted, place, token)) % kPiece != 0) return;
  }
  const bool goes_on = place + kPiece < size && a.sorted[place + kPiece] == token;
  const int end =
      goes_on ? place + kPiece : last_place(a.sorted, place, min(size, place + kPiece), token);
  const bool whole = first && !goes_on;
  if (first && goes_on && blockIdx.y == 0 && lane == 0) a.long_runs[place / kPiece] = place;

  const int64_t column = (blockIdx.y * int64_t{32} + lane) * kWidth;
  if (column >= a.width) return;
  const Scalar* const from = static_cast<const Scalar*>(a.grad_out) + column;
  float sum[kWidth] = {};
#pragma unroll 8
  for (int i = place; i < end; ++i) {
    float values[kWidth];
    load(values, from + a.places[i] * a.width);
#pragma unroll
    for (int j = 0; j < kWidth; ++j) sum[j] += values[j];
  }
  if (whole) {
    store(static_cast<Scalar*>(a.grad_weight) + token * a.width + column, sum);
  } else {
    store(a.pieces + slot_of(place, first) * a.width + column, sum);
  }
}

/// A block per window: adds the pieces of the long run that begins in it.
template <class Scalar>
__global__ void __launch_bounds__(kThreads)
    long_runs_kernel(const __grid_constant__ EmbeddingBackward a) {
  const int begin = a.long_runs[blockIdx.x];
  if (begin < 0) return;
  const int size = static_cast<int>(a.num_tokens), token = a.sorted[begin];
  const int end = last_place(a.sorted, begin, size, token);
  const int64_t column = blockIdx.y * int64_t{kThreads} + threadIdx.x;
  if (column >= a.width) return;
  float sum = a.pieces[slot_of(begin, true) * a.width + column];
#pragma unroll 8
  for (int place = begin + kPiece; place < end; place += kPiece)
    sum += a.pieces[slot_of(place, false) * a.width + column];
  static_cast<Scalar*>(a.grad_weight)[token * a.width + column] = from_float<Scalar>(sum);
}

template <class Scalar, int kWidth>
cudaError_t launch(const EmbeddingForward& a, cudaStream_t stream) {
  const auto blocks = static_cast<unsigned>(divide_up(a.num_tokens * (a.width / kWidth), kThreads));
  forward_kernel<Scalar, kWidth><<<blocks, kThreads, 0, stream>>>(a);
  return cudaGetLastError();
}

template <class Scalar>
cudaError_t launch(const EmbeddingForward& a, cudaStream_t stream) {
  constexpr int kWidth = kVectorWidth<Scalar>;
  const bool vectors = a.width % kWidth == 0 && are_aligned_16(a.weight, a.position, a.out);
  return vectors ? launch<Scalar, kWidth>(a, stream) : launch<Scalar, 1>(a, stream);
}

template <class Scalar>
cudaError_t launch(const EmbeddingBackward& a, cudaStream_t stream) {
  constexpr int kWidth = kVectorWidth<Scalar>;
  const bool vectors = a.width % kWidth == 0 && are_aligned_16(a.grad_out, a.grad_weight, a.pieces);
  const auto blocks = static_cast<unsigned>(divide_up(a.num_tokens, kWarps));
  if (vectors) {
    pieces_kernel<Scalar, kWidth>
        <<<dim3(blocks, divide_up(a.width, 32 * kWidth)), kThreads, 0, stream>>>(a);
  } else {
    pieces_kernel<Scalar, 1><<<dim3(blocks, divide_up(a.width, 32)), kThreads, 0, stream>>>(a);
  }
  const cudaError_t error = cudaGetLastError();
  if (error != cudaSuccess) return error;
  const auto windows = static_cast<unsigned>(divide_up(a.num_tokens, kPiece));
  long_runs_kernel<Scalar><<<dim3(windows, divide_up(a.width, kThreads)), kThreads, 0, stream>>>(a);
  return cudaGetLastError();
}

}  // namespace

cudaError_t embedding_forward(const EmbeddingForward& a, cudaStream_t stream) {
  if (a.num_tokens == 0 || a.width == 0) return cudaSuccess;
  return a.is_bf16 ? launch<bf16>(a, stream) : launch<float>(a, stream);
}

cudaError_t embedding_backward(const EmbeddingBackward& a, cudaStream_t stream) {
  if (a.num_tokens == 0 || a.width == 0) return cudaSuccess;
  return a.is_bf16 ? launch<bf16>(a, stream) : launch<float>(a, stream);
}

cudaError_t position_backward(const PositionBackward& a, cudaStream_t stream) {
  if (a.is_bf16)
    return sum_rows(static_cast<const bf16*>(a.grad_out),
                    a.batch,
                    a.columns,
                    static_cast<bf16*>(a.grad_position),
                    stream);
  return sum_rows(static_cast<const float*>(a.grad_out),
                  a.batch,
                  a.columns,
                  static_cast<float*>(a.grad_position),
                  stream);
}

}  // namespace t2r::kernels::cuda
