#include "launch/train/lr_schedule.h"

#include <algorithm>
#include <cmath>
#include <numbers>

namespace t2r::launch {

double LrSchedule::rate(int64_t step) const {
  if (step <= warmup_steps)
    return peak * static_cast<double>(step) / static_cast<double>(warmup_steps);
  if (shape == LrShape::kConstant) return peak;
  if (shape == LrShape::kInverseSqrt) {
    const auto warmup = static_cast<double>(std::max<int64_t>(1, warmup_steps));
    return peak * std::sqrt(warmup / std::max(warmup, static_cast<double>(step)));
  }
  const int64_t decay_steps = std::max<int64_t>(1, total_steps - warmup_steps);
  const double progress =
      std::min(1.0, static_cast<double>(step - warmup_steps) / static_cast<double>(decay_steps));
  const double remaining = shape == LrShape::kLinear
                               ? 1.0 - progress
                               : 0.5 * (1.0 + std::cos(std::numbers::pi * progress));
  return peak * (final_ratio + (1.0 - final_ratio) * remaining);
}

}  // namespace t2r::launch
