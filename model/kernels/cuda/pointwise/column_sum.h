#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

namespace t2r::kernels::cuda {

/// sums[c] = sum over rows of x[r][c], added up in float32: the gradient of a bias.
struct ColumnSumArguments {
  const void* x = nullptr;  ///< [rows, columns]
  bool bf16 = false;        ///< x and sums; else float32
  int64_t rows = 0, columns = 0;
  int64_t row_stride = 0;     ///< elements
  float* partials = nullptr;  ///< [column_sum_parts(), columns], memory for this call
  void* sums = nullptr;       ///< [columns]
};

/// Parts into which the rows are cut; depends on the shape alone, and so does the order of the sum.
int column_sum_parts(int64_t rows, int64_t columns);

/// Two kernels on `stream`; no allocation, no synchronisation. Deterministic.
cudaError_t column_sum(const ColumnSumArguments& arguments, cudaStream_t stream);

}  // namespace t2r::kernels::cuda
