#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

/// Cross-entropy of rows of logits, or what it becomes beside a teacher, and its gradient in their
/// place. No LibTorch.
namespace t2r::kernels::cuda {

/// Columns of memory per row of logits: rows begin at multiples of 16 bytes, whatever the
/// vocabulary is.
constexpr int64_t padded_columns(int64_t columns) {
  return (columns + 7) / 8 * 8;
}

struct CrossEntropy {
  int64_t rows = 0;
  int64_t columns = 0;
  bool bf16_logits = false;
  bool gradient = false;   ///< else the logits stay as they are
  void* logits = nullptr;  ///< [rows][padded_columns(columns)], 16-byte aligned; after it softmax -
                           ///< onehot, rounded
  const int64_t* targets =
      nullptr;  ///< negative: no loss, a gradient of zeros; `columns` or more: a loss of NaN
  float* losses = nullptr;  ///< [rows]: -log softmax(row)[target], in nats
  /// A teacher's logits, as `logits` lie, or none. With them a row's loss is (1 - teacher_share)
  /// times the one above and teacher_share times the divergence KL(softmax(teacher) ||
  /// softmax(row)), and the gradient follows.
  const void* teacher_logits = nullptr;
  float teacher_share = 0.0F;
};

/// A row (with a teacher's, both) is read once and kept in shared memory where the device has
/// enough for it (`shared_bytes` for a block), else it is read again. Launches one kernel on
/// `stream`; no allocation, no synchronisation; deterministic.
cudaError_t cross_entropy(const CrossEntropy& arguments, int shared_bytes, cudaStream_t stream);

/// to = from * *factor, in float32; `factor` is in device memory. Where to == from and the factor
/// is 1 nothing is written.
struct Scale {
  int64_t size = 0;
  bool bf16_from = false, bf16_to = false;
  const void* from = nullptr;
  void* to = nullptr;
  const double* factor = nullptr;
};
cudaError_t scale(const Scale& arguments, cudaStream_t stream);

}  // namespace t2r::kernels::cuda
