#pragma once

#include <cstdint>

#include "launch/options/option_names.h"

namespace t2r::launch {

/// What the rate does behind the warm-up.
enum class LrShape { kCosine, kLinear, kInverseSqrt, kConstant };

template <>
struct OptionNames<LrShape> {
  static constexpr std::pair<const char*, LrShape> kNames[] = {
      {"cosine", LrShape::kCosine},
      {"linear", LrShape::kLinear},
      {"inverse-sqrt", LrShape::kInverseSqrt},
      {"constant", LrShape::kConstant}};
};

/// Learning rate as a function of the step.
struct LrSchedule {
  LrShape shape = LrShape::kCosine;
  double peak = 3e-4;
  double final_ratio = 0.1;  ///< of peak, at the last step (cosine, linear)
  int64_t warmup_steps = 0;  ///< linear from 0 to peak
  int64_t total_steps = 1;

  /// Rate of step `step`, counted from 1. inverse-sqrt: peak sqrt(warmup / step), Vaswani et al.
  /// 2017.
  double rate(int64_t step) const;
};

}  // namespace t2r::launch
