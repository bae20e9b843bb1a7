#pragma once

// Warp-level building blocks of the bf16 kernels: mma.sync, ldmatrix, cp.async and tiles in shared
// memory.
//
// All fragments are those of mma.m16n8k16 (PTX ISA 9.7.14.5.8); with `lane` in 0..31:
//   C  c[0], c[1]: row lane / 4, columns 2 (lane % 4) + {0, 1};  c[2], c[3]: row + 8
//   A  a[0]: row lane / 4, k 2 (lane % 4) + {0, 1}; a[1]: row + 8; a[2]: k + 8; a[3]: both
//   B  b[0]: k 2 (lane % 4) + {0, 1}, column lane / 4; b[1]: k + 8 so two neighbouring C tiles,
//   rounded and packed, are one A fragment: chained products stay in registers.

#include <cuda_bf16.h>

#include <cstdint>

namespace t2r::kernels::cuda {

using bf16 = __nv_bfloat16;

__device__ __forceinline__ uint32_t shared_address(const void* pointer) {
  return static_cast<uint32_t>(__cvta_generic_to_shared(pointer));
}

/// Copies 16 bytes to shared memory without waiting; writes zeros if `valid` is false.
__device__ __forceinline__ void copy_async_16(uint32_t to, const void* from, bool valid) {
  const int bytes = valid ? 16 : 0;
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;\n" ::"r"(to), "l"(from), "r"(bytes)
               : "memory");
}

__device__ __forceinline__ void commit_copies() {
  asm volatile("cp.async.commit_group;\n" ::: "memory");
}

/// Waits until at most `kPending` of this thread's committed groups are on their way.
template <int kPending>
__device__ __forceinline__ void wait_copies() {
  asm volatile("cp.async.wait_group %0;\n" ::"n"(kPending) : "memory");
}

__device__ __forceinline__ void load_matrices(uint32_t (&r)[4], uint32_t address) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];\n"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(address)
               : "memory");
}

__device__ __forceinline__ void load_matrices_transposed(uint32_t (&r)[4], uint32_t address) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];\n"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(address)
               : "memory");
}

/// c += a b on the tensor cores.
__device__ __forceinline__ void mma(float (&c)[4],
                                    const uint32_t (&a)[4],
                                    uint32_t b0,
                                    uint32_t b1) {
  asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, "
      "{%0,%1,%2,%3};\n"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

__device__ __forceinline__ uint32_t pack(float low, float high) {
  const __nv_bfloat162 both = __floats2bfloat162_rn(low, high);
  return *reinterpret_cast<const uint32_t*>(&both);
}

__device__ __forceinline__ float2 unpack(uint32_t both) {
  return {__uint_as_float(both << 16), __uint_as_float(both & 0xffff0000u)};
}

/// x = hi + lo with |error| <= 2^-17 |x|: how float32 states enter a bf16 product without losing
/// their digits.
__device__ __forceinline__ void split(float x, float y, uint32_t& hi, uint32_t& lo) {
  hi = pack(x, y);
  const float2 rounded = unpack(hi);
  lo = pack(x - rounded.x, y - rounded.y);
}

/// Sum over the four lanes that hold one row of a C tile.
__device__ __forceinline__ float row_sum(float x) {
  x += __shfl_xor_sync(0xffffffffu, x, 1);
  return x + __shfl_xor_sync(0xffffffffu, x, 2);
}

/// A row-major bf16 matrix of `kColumns` columns in shared memory. Units of 16 bytes are swizzled
/// so that the eight rows that ldmatrix reads at once lie in different banks.
template <int kColumns>
struct Tile {
  static constexpr int kUnits = kColumns / 8;
  static constexpr int kRowBytes = kColumns * 2;
  uint32_t base;

  __device__ __forceinline__ static int swizzle(int row) {
    if constexpr (kUnits >= 8) {
      return row & 7;
    } else {
      return (row / (8 / kUnits)) & (kUnits - 1);
    }
  }

  /// Address of unit `unit` (columns 8 unit .. 8 unit + 7) of `row`.
  __device__ __forceinline__ uint32_t at(int row, int unit) const {
    return base + row * kRowBytes + ((unit ^ swizzle(row)) << 4);
  }

  /// A fragment: rows row..row+15, k columns 8 unit .. 8 unit + 15.
  __device__ __forceinline__ void load_a(uint32_t (&a)[4], int row, int unit, int lane) const {
    load_matrices(a, at(row + (lane & 15), unit + (lane >> 4)));
  }

  /// Writes what load_a() reads.
  __device__ __forceinline__ void store_a(const uint32_t (&a)[4],
                                          int row,
                                          int unit,
                                          int lane) const {
#if __CUDA_ARCH__ >= 900
    asm volatile("stmatrix.sync.aligned.m8n8.x4.shared.b16 [%0], {%1,%2,%3,%4};\n" ::"r"(
                     at(row + (lane & 15), unit + (lane >> 4))),
                 "r"(a[0]),
                 "r"(a[1]),
                 "r"(a[2]),
                 "r"(a[3])
                 : "memory");
#else
#pragma unroll
    for (int i = 0; i < 4; ++i)
      store_pair(row + lane / 4 + 8 * (i & 1), unit + i / 2, lane & 3, a[i]);
#endif
  }

  /// A fragment of the transpose: m = columns 8 unit .. 8 unit + 15, k = rows row..row+15.
  __device__ __forceinline__ void load_a_transposed(uint32_t (&a)[4],
                                                    int row,
                                                    int unit,
                                                    int lane) const {
    load_matrices_transposed(a, at(row + (lane & 7) + ((lane >> 1) & 8), unit + ((lane >> 3) & 1)));
  }

  /// B fragments of two n-tiles where this tile holds [n][k]: n = rows row..row+15, k = columns 8
  /// unit .. 8 unit + 15.
  __device__ __forceinline__ void load_b(uint32_t (&b)[4], int row, int unit, int lane) const {
    load_matrices(b, at(row + (lane & 7) + ((lane >> 1) & 8), unit + ((lane >> 3) & 1)));
  }

  /// B fragments of two n-tiles where this tile holds [k][n]: k = rows row..row+15, n = columns 8
  /// unit .. 8 unit + 15.
  __device__ __forceinline__ void load_b_transposed(uint32_t (&b)[4],
                                                    int row,
                                                    int unit,
                                                    int lane) const {
    load_matrices_transposed(b, at(row + (lane & 15), unit + (lane >> 4)));
  }

  /// B fragments of one n-tile and two k-steps where this tile holds [k][n]: k = rows row..row+31,
  /// n = columns of `unit`.
  __device__ __forceinline__ void load_b_column_transposed(uint32_t (&b)[4],
                                                           int row,
                                                           int unit,
                                                           int lane) const {
    load_matrices_transposed(b, at(row + lane, unit));
  }

  /// Stores the packed pair (column 8 unit + 2 pair, and the next) of `row`.
  __device__ __forceinline__ void store_pair(int row, int unit, int pair, uint32_t value) const {
    asm volatile("st.shared.b32 [%0], %1;\n" ::"r"(at(row, unit) + pair * 4), "r"(value)
                 : "memory");
  }
};

__device__ __forceinline__ uint4 load_shared_16(uint32_t address) {
  uint4 v;
  asm volatile("ld.shared.v4.b32 {%0,%1,%2,%3}, [%4];\n"
               : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w)
               : "r"(address)
               : "memory");
  return v;
}

__device__ __forceinline__ void store_shared_16(uint32_t address, uint4 v) {
  asm volatile("st.shared.v4.b32 [%0], {%1,%2,%3,%4};\n" ::"r"(address),
               "r"(v.x),
               "r"(v.y),
               "r"(v.z),
               "r"(v.w)
               : "memory");
}

}  // namespace t2r::kernels::cuda
