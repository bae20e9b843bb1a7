#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

namespace t2r::kernels::cuda {

/// Where a value stands in the float64 control tensor, through which host and kernels speak of one
/// optimizer step: the host writes without waiting, the kernels decide, so that a step needs no
/// synchronisation and a CUDA graph can replay it.
enum ControlSlot : int {
  kLearningRate = 0,
  kMapLearningRate = 1,       ///< of the parameters that T2R added
  kClipNorm = 2,              ///< 0: no clipping
  kLossSum = 3,               ///< not finite: the step is skipped
  kNumTokens = 4,             ///< gradients are of a sum over so many tokens
  kNumUpdates = 5,            ///< read, and one more where the step is not skipped
  kGradientNorm = 6,          ///< out: of the mean's gradient, before clipping
  kIsSkipped = 7,             ///< out: 0 or 1
  kGradientScale = 8,         ///< out: the clipping factor over num_tokens; 0 where skipped
  kBiasCorrection1 = 9,       ///< out: 1 - beta1^num_updates
  kBiasCorrection2Sqrt = 10,  ///< out: sqrt(1 - beta2^num_updates)
};
inline constexpr int kControlSlots = 16;

struct GradientNormArguments {
  const void* gradients = nullptr;  ///< [count], flat
  bool bf16_gradients = false;      ///< else float32
  int64_t count = 0;
  double* partials = nullptr;  ///< [kNormPartials], memory for this call
  double* control = nullptr;   ///< [kControlSlots]
  double beta1 = 0.9, beta2 = 0.95;
};

inline constexpr int kNormPartials =
    2048;  ///< the order of the sum depends on it, and on nothing of the device

/// |gradients| / num_tokens in float64, then the step's decisions as launch/train/trainer.cpp makes
/// them: see ControlSlot. Two kernels on `stream`; no allocation, no synchronisation.
/// Deterministic.
cudaError_t gradient_norm(const GradientNormArguments& arguments, cudaStream_t stream);

/// Flags of a span.
inline constexpr int64_t kSpanDecays = 1;  ///< weight decay applies
inline constexpr int64_t kSpanIsMap = 2;   ///< the map's learning rate applies

/// One step of AdamW with decoupled decay on flat memory, in the operations of the CPU's kernel
/// (model/kernels/cpu/pointwise_cpu.h).
/// Source: Loshchilov & Hutter 2019, algorithm 2, as torch.optim.AdamW orders the operations.
struct AdamWArguments {
  float* master = nullptr;  ///< [count]
  void* values =
      nullptr;  ///< [count] bfloat16, gets the rounded master; null: the master is the model
  const void* gradients = nullptr;  ///< [count]
  bool bf16_gradients = false;      ///< else float32
  float* first_moment = nullptr;    ///< [count]
  float* second_moment = nullptr;   ///< [count]
  int64_t count = 0;
  const int64_t* spans =
      nullptr;  ///< [num_spans, 3] on the device: begin, end, flags; a block of threads each
  int64_t num_spans = 0;
  const double* control = nullptr;  ///< [kControlSlots]; nothing is changed where is_skipped is 1
  double beta1 = 0.9, beta2 = 0.95, eps = 1e-8, weight_decay = 0.1;
};

/// One kernel on `stream`; no allocation, no synchronisation. Spans may begin anywhere; what lies
/// outside of memory is left out.
cudaError_t adamw(const AdamWArguments& arguments, cudaStream_t stream);

}  // namespace t2r::kernels::cuda
