#pragma once

#include <cstdint>

#include "model/kernels/draw_rule.h"

namespace t2r::kernels {

/// The token that `rule` (not a greedy one) draws from `size` logits, 1 to 2^23 of them; a pure
/// function of its arguments, the same as the GPU's. Thread-safe.
/// @return  -1 if a logit is NaN, or the largest is not finite: nothing can be drawn
int64_t draw_token(
    const float* logits, int64_t size, const DrawRule& rule, int64_t row, int64_t position);

}  // namespace t2r::kernels
