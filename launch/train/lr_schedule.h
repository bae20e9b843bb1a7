#pragma once

#include <cstdint>
#include <string>

namespace t2r::launch {

/// Learning rate as a function of the step.
struct LrSchedule {
  std::string shape = "cosine";  ///< cosine, linear, inverse-sqrt, constant: after the warm-up
  double peak = 3e-4;
  double final_ratio = 0.1;  ///< of peak, at the last step (cosine, linear)
  int64_t warmup_steps = 0;  ///< linear from 0 to peak
  int64_t total_steps = 1;

  /// Rate of step `step`, counted from 1. inverse-sqrt: peak sqrt(warmup / step), Vaswani et al.
  /// 2017.
  double rate(int64_t step) const;
};

}  // namespace t2r::launch
