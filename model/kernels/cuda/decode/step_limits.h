#pragma once

/// What the kernels of a step of generation take. No CUDA header: the model asks, too, in a build
/// without CUDA.
namespace t2r::kernels::cuda {

inline constexpr int kMaxCacheHead = 128;  ///< head size of attention over a cache, a multiple of 8
inline constexpr int kMaxStepRows = 16;    ///< of one tile of the tensor cores
inline constexpr int kMaxStepInputs = 16384;
inline constexpr int kMaxStepSize =
    48 * 1024;  ///< rows times inputs: two blocks on a multiprocessor of Hopper without a norm

}  // namespace t2r::kernels::cuda
