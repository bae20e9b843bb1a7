#pragma once

#include <ATen/core/Tensor.h>

namespace t2r::ops {

using at::Tensor;

/// What is done to the product before it is stored, or beside it.
enum class Epilogue {
  kNone,
  kBias,   ///< out = a b + bias
  kGelu,   ///< out = gelu_tanh(a b + bias); aux, if defined, gets a b + bias
  kDGelu,  ///< out = (a b) gelu_tanh'(aux)
};

/// out = a b of row-major matrices, bfloat16 or float32, with float32 accumulation; out may be
/// float32 where a and b are bfloat16.
///
/// a and b may be transposed views: what is the unit stride decides, nothing is copied. cuBLASLt
/// computes column-major matrices, and a row-major matrix is its transpose in that view, so it is
/// asked for out^T = b^T a^T: its operand A is our b and its rows are our columns. Hence a vector
/// that it broadcasts along "rows of D" is one value per column of out, which is what a bias is.
/// Gradients of biases are column_sum()s: cuBLASLt's epilogues for them are kernels of their own
/// behind the product, and the one with gelu's gradient took 1.3 ms where the sums take 0.15
/// (docs/kernels.md).
struct Matmul {
  Tensor a;    ///< [M, K]
  Tensor b;    ///< [K, N]
  Tensor out;  ///< [M, N], unit stride along N
  Epilogue epilogue = Epilogue::kNone;
  Tensor bias = {};         ///< [N], kBias and kGelu
  Tensor aux = {};          ///< [M, N] contiguous: written by kGelu, read by kDGelu
  bool accumulate = false;  ///< out += a b; without epilogue only
};

/// Runs on the current stream of the current device, can be captured in a CUDA graph, and is
/// deterministic: one algorithm a shape, and split sums are added up in float32 in a separate step.
/// The chosen algorithm is remembered. What cuBLASLt does not fuse for a shape (aux needs N to be a
/// multiple of 8; gelu needs bfloat16) becomes several operations with the same result. float32
/// uses TF32 if PyTorch's settings allow that. Not differentiable. T2R_UNFUSED (a list out of
/// bias,gelu,dgelu) leaves those epilogues to the operations, to test or to measure them.
/// @return  whether one call of cuBLASLt did all
bool matmul_lt(const Matmul& product);

/// Sums over rows of a matrix with any strides, [R, C] -> [C], added up in float32. As matmul_lt()
/// otherwise.
Tensor column_sum(const Tensor& matrix);

}  // namespace t2r::ops
