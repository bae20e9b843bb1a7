#pragma once

// Warpgroup matrix products of Hopper (wgmma), on the tiles of tensor_core.cuh: their swizzle is
// the hardware's.
//
// A warpgroup (four warps) computes a 64 x N tile; warp w holds rows 16 w .. 16 w + 15 as the C
// fragments of mma.m16n8k16, so fragments chain into A operands as there. Operands in shared memory
// are read by the asynchronous proxy: data written by ordinary stores or cp.async needs
// make_visible_to_wgmma() by the writers and a barrier in between.

#include "model/kernels/cuda/tensor_core.cuh"

namespace t2r::kernels::cuda::sm90 {

__device__ __forceinline__ void make_visible_to_wgmma() {
  asm volatile("fence.proxy.async.shared::cta;\n" ::: "memory");
}

/// Before the first product after registers of its operands or results were touched.
__device__ __forceinline__ void begin_products() {
  asm volatile("wgmma.fence.sync.aligned;\n" ::: "memory");
}
__device__ __forceinline__ void commit_products() {
  asm volatile("wgmma.commit_group.sync.aligned;\n" ::: "memory");
}
template <int kPending>
__device__ __forceinline__ void wait_products() {
  asm volatile("wgmma.wait_group.sync.aligned %0;\n" ::"n"(kPending) : "memory");
}

/// Keeps the compiler from moving uses of an accumulator across a wait.
template <int kTiles>
__device__ __forceinline__ void settle(float (&d)[kTiles][4]) {
#pragma unroll
  for (auto& tile : d)
#pragma unroll
    for (float& x : tile) asm volatile("" : "+f"(x)::"memory");
}

/// Moves registers between warpgroups: this warpgroup's threads have kRegisters from now on. Only
/// where the block's warpgroups part, each into a branch of its own.
template <int kRegisters>
__device__ __forceinline__ void take_registers() {
  asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;\n" ::"n"(kRegisters));
}
template <int kRegisters>
__device__ __forceinline__ void give_registers() {
  asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;\n" ::"n"(kRegisters));
}

/// Barrier of one warpgroup; `id` 1 to 15.
__device__ __forceinline__ void sync_warpgroup(int id) {
  asm volatile("bar.sync %0, 128;\n" ::"r"(id) : "memory");
}

enum class Major {
  kK,   ///< the tile's columns run along k: A as [m][k], B as [n][k]
  kMN,  ///< the tile's rows run along k: A as [k][m], B as [k][n]; at most kColumns of m or n
};

/// Descriptor of an operand that begins at `row` of a tile, k step `step` (16 each).
template <Major kMajor, int kColumns>
__device__ __forceinline__ uint64_t operand(const Tile<kColumns>& tile, int row, int step) {
  static_assert(kColumns == 32 || kColumns == 64, "rows of 64 or 128 bytes");
  constexpr uint64_t kLayout = kColumns == 64 ? 1 : 2;  // swizzled over 128 or 64 bytes
  constexpr uint64_t kEightRows = 8 * Tile<kColumns>::kRowBytes;
  const uint32_t offset = kMajor == Major::kK ? row * Tile<kColumns>::kRowBytes + step * 32
                                              : (row + step * 16) * Tile<kColumns>::kRowBytes;
  // Shared memory ends below 2^18, so the offset (a constant, mostly) cannot carry out of the
  // address field.
  const uint32_t low = ((tile.base >> 4) | 0x10000u) + (offset >> 4);
  constexpr uint32_t kHigh =
      static_cast<uint32_t>(kEightRows >> 4) | static_cast<uint32_t>(kLayout << 30);
  return uint64_t{kHigh} << 32 | low;
}

#define T2R_C4(i) "+f"(d[i][0]), "+f"(d[i][1]), "+f"(d[i][2]), "+f"(d[i][3])
#define T2R_C16(i) T2R_C4(i), T2R_C4(i + 1), T2R_C4(i + 2), T2R_C4(i + 3)

/// d = a b, or d += a b; both from shared memory.
template <Major kA, Major kB>
__device__ __forceinline__ void product(float (&d)[1][4], uint64_t a, uint64_t b, bool accumulate) {
  asm volatile(
      "{\n.reg .pred p;\nsetp.ne.b32 p, %6, 0;\n"
      "wgmma.mma_async.sync.aligned.m64n8k16.f32.bf16.bf16 {%0, %1, %2, %3}, %4, %5, p, 1, 1, %7, "
      "%8;\n}\n"
      : T2R_C4(0)
      : "l"(a),
        "l"(b),
        "r"(int(accumulate)),
        "n"(int(kA == Major::kMN)),
        "n"(int(kB == Major::kMN)));
}

/// d = a b, or d += a b; both from shared memory.
template <Major kA, Major kB>
__device__ __forceinline__ void product(float (&d)[4][4], uint64_t a, uint64_t b, bool accumulate) {
  asm volatile(
      "{\n.reg .pred p;\nsetp.ne.b32 p, %18, 0;\n"
      "wgmma.mma_async.sync.aligned.m64n32k16.f32.bf16.bf16 "
      "{%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15}, "
      "%16, %17, p, 1, 1, %19, %20;\n}\n"
      : T2R_C16(0)
      : "l"(a),
        "l"(b),
        "r"(int(accumulate)),
        "n"(int(kA == Major::kMN)),
        "n"(int(kB == Major::kMN)));
}

/// The same with a from registers.
template <Major kB>
__device__ __forceinline__ void product(float (&d)[4][4],
                                        const uint32_t (&a)[4],
                                        uint64_t b,
                                        bool accumulate) {
  asm volatile(
      "{\n.reg .pred p;\nsetp.ne.b32 p, %21, 0;\n"
      "wgmma.mma_async.sync.aligned.m64n32k16.f32.bf16.bf16 "
      "{%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15}, "
      "{%16, %17, %18, %19}, %20, p, 1, 1, %22;\n}\n"
      : T2R_C16(0)
      : "r"(a[0]),
        "r"(a[1]),
        "r"(a[2]),
        "r"(a[3]),
        "l"(b),
        "r"(int(accumulate)),
        "n"(int(kB == Major::kMN)));
}

/// d = a b, or d += a b; both from shared memory.
template <Major kA, Major kB>
__device__ __forceinline__ void product(float (&d)[8][4], uint64_t a, uint64_t b, bool accumulate) {
  asm volatile(
      "{\n.reg .pred p;\nsetp.ne.b32 p, %34, 0;\n"
      "wgmma.mma_async.sync.aligned.m64n64k16.f32.bf16.bf16 "
      "{%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, %16, %17, %18, %19, "
      "%20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31}, "
      "%32, %33, p, 1, 1, %35, %36;\n}\n"
      : T2R_C16(0), T2R_C16(4)
      : "l"(a),
        "l"(b),
        "r"(int(accumulate)),
        "n"(int(kA == Major::kMN)),
        "n"(int(kB == Major::kMN)));
}

/// The same with a from registers.
template <Major kB>
__device__ __forceinline__ void product(float (&d)[8][4],
                                        const uint32_t (&a)[4],
                                        uint64_t b,
                                        bool accumulate) {
  asm volatile(
      "{\n.reg .pred p;\nsetp.ne.b32 p, %37, 0;\n"
      "wgmma.mma_async.sync.aligned.m64n64k16.f32.bf16.bf16 "
      "{%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, %16, %17, %18, %19, "
      "%20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31}, "
      "{%32, %33, %34, %35}, %36, p, 1, 1, %38;\n}\n"
      : T2R_C16(0), T2R_C16(4)
      : "r"(a[0]),
        "r"(a[1]),
        "r"(a[2]),
        "r"(a[3]),
        "l"(b),
        "r"(int(accumulate)),
        "n"(int(kB == Major::kMN)));
}

/// d = a b, or d += a b; both from shared memory.
template <Major kA, Major kB>
__device__ __forceinline__ void product(float (&d)[16][4],
                                        uint64_t a,
                                        uint64_t b,
                                        bool accumulate) {
  asm volatile(
      "{\n.reg .pred p;\nsetp.ne.b32 p, %66, 0;\n"
      "wgmma.mma_async.sync.aligned.m64n128k16.f32.bf16.bf16 "
      "{%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, %16, %17, %18, %19, "
      "%20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, %32, %33, %34, %35, %36, %37, "
      "%38, %39, %40, %41, %42, %43, %44, %45, %46, %47, %48, %49, %50, %51, %52, %53, %54, %55, "
      "%56, %57, %58, %59, %60, %61, %62, %63}, "
      "%64, %65, p, 1, 1, %67, %68;\n}\n"
      : T2R_C16(0), T2R_C16(4), T2R_C16(8), T2R_C16(12)
      : "l"(a),
        "l"(b),
        "r"(int(accumulate)),
        "n"(int(kA == Major::kMN)),
        "n"(int(kB == Major::kMN)));
}

/// The same with a from registers.
template <Major kB>
__device__ __forceinline__ void product(float (&d)[16][4],
                                        const uint32_t (&a)[4],
                                        uint64_t b,
                                        bool accumulate) {
  asm volatile(
      "{\n.reg .pred p;\nsetp.ne.b32 p, %69, 0;\n"
      "wgmma.mma_async.sync.aligned.m64n128k16.f32.bf16.bf16 "
      "{%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, %16, %17, %18, %19, "
      "%20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, %32, %33, %34, %35, %36, %37, "
      "%38, %39, %40, %41, %42, %43, %44, %45, %46, %47, %48, %49, %50, %51, %52, %53, %54, %55, "
      "%56, %57, %58, %59, %60, %61, %62, %63}, "
      "{%64, %65, %66, %67}, %68, p, 1, 1, %70;\n}\n"
      : T2R_C16(0), T2R_C16(4), T2R_C16(8), T2R_C16(12)
      : "r"(a[0]),
        "r"(a[1]),
        "r"(a[2]),
        "r"(a[3]),
        "l"(b),
        "r"(int(accumulate)),
        "n"(int(kB == Major::kMN)));
}

#undef T2R_C16
#undef T2R_C4

}  // namespace t2r::kernels::cuda::sm90
