#pragma once

// Small dense products on data in the first-level cache, for the instruction set that the including
// file is compiled for. Matrices that are read or written by rows have their row length padded to
// kLanes with zeros.

#include <cstdint>

#ifndef T2R_CPU_ISA
#error "include from a file compiled for one instruction set (see cpu_dispatch.cpp)"
#endif

namespace t2r::model::kernels::T2R_CPU_ISA {

#if defined(__AVX512F__)
constexpr int kVectorBytes = 64;
constexpr int kRowTile = 8;
#elif defined(__AVX2__)
constexpr int kVectorBytes = 32;
constexpr int kRowTile = 4;
#else
constexpr int kVectorBytes = 16;
constexpr int kRowTile = 4;
#endif

template <class T>
struct Lanes;
template <>
struct Lanes<float> {
  typedef float Vector __attribute__((vector_size(kVectorBytes), may_alias));
};
template <>
struct Lanes<double> {
  typedef double Vector __attribute__((vector_size(kVectorBytes), may_alias));
};
template <class T>
using Vector = typename Lanes<T>::Vector;

template <class T>
constexpr int64_t kLanes = kVectorBytes / sizeof(T);

/// A vector in memory that is aligned for T alone. `aligned` on the vector's own typedef would not
/// do: clang loses it in templates and loads with instructions that fault.
template <class T>
struct __attribute__((packed, may_alias)) UnalignedVector {
  Vector<T> lanes;
};

template <class T>
inline Vector<T> load(const T* x) {
  return reinterpret_cast<const UnalignedVector<T>*>(x)->lanes;
}

template <class T>
inline void store(Vector<T> lanes, T* x) {
  reinterpret_cast<UnalignedVector<T>*>(x)->lanes = lanes;
}

template <class T>
constexpr int64_t padded(int64_t size) {
  return (size + kLanes<T> - 1) / kLanes<T> * kLanes<T>;
}

/// Left operand of a product: element (i, t) at data[i * row_stride + t * column_stride], so a
/// transposed operand costs no copy.
template <class T>
struct Left {
  const T* data;
  int64_t row_stride;
  int64_t column_stride;
};

// C[rows, columns * kLanes] (+)= A[rows, depth] B[depth, columns * kLanes], all of C in registers.
template <class T, int rows, int columns, bool accumulate>
inline void multiply_tile(
    Left<T> a, const T* b, int64_t stride_b, T* c, int64_t stride_c, int64_t depth) {
  Vector<T> sum[rows][columns];
  for (int i = 0; i < rows; ++i) {
    for (int j = 0; j < columns; ++j) {
      const T* source = c + i * stride_c + j * kLanes<T>;
      sum[i][j] = accumulate ? load(source) : Vector<T>{};
    }
  }
  for (int64_t t = 0; t < depth; ++t) {
    Vector<T> right[columns];
    for (int j = 0; j < columns; ++j) {
      right[j] = load(b + t * stride_b + j * kLanes<T>);
    }
    for (int i = 0; i < rows; ++i) {
      const T left = a.data[i * a.row_stride + t * a.column_stride];
      for (int j = 0; j < columns; ++j) sum[i][j] += left * right[j];
    }
  }
  for (int i = 0; i < rows; ++i) {
    for (int j = 0; j < columns; ++j) {
      store<T>(sum[i][j], c + i * stride_c + j * kLanes<T>);
    }
  }
}

template <class T, int rows, bool accumulate>
inline void multiply_rows(
    Left<T> a, const T* b, int64_t stride_b, T* c, int64_t stride_c, int64_t width, int64_t depth) {
  int64_t j = 0;
  for (; j + 2 * kLanes<T> <= width; j += 2 * kLanes<T>) {
    multiply_tile<T, rows, 2, accumulate>(a, b + j, stride_b, c + j, stride_c, depth);
  }
  for (; j < width; j += kLanes<T>) {
    multiply_tile<T, rows, 1, accumulate>(a, b + j, stride_b, c + j, stride_c, depth);
  }
}

/// C[height, width] (+)= A[height, depth] B[depth, width]. `width` is rounded up to kLanes: the
/// rows of B and C must be that long. The order of summation is fixed by the sizes alone.
template <class T, bool accumulate>
inline void multiply(Left<T> a,
                     const T* b,
                     int64_t stride_b,
                     T* c,
                     int64_t stride_c,
                     int64_t height,
                     int64_t width,
                     int64_t depth) {
  int64_t i = 0;
  for (; i + kRowTile <= height; i += kRowTile) {
    multiply_rows<T, kRowTile, accumulate>(
        {a.data + i * a.row_stride, a.row_stride, a.column_stride},
        b,
        stride_b,
        c + i * stride_c,
        stride_c,
        width,
        depth);
  }
  for (; i < height; ++i) {
    multiply_rows<T, 1, accumulate>({a.data + i * a.row_stride, a.row_stride, a.column_stride},
                                    b,
                                    stride_b,
                                    c + i * stride_c,
                                    stride_c,
                                    width,
                                    depth);
  }
}

}  // namespace t2r::model::kernels::T2R_CPU_ISA
