#pragma once

#include "model/kernels/cuda/causal/causal_attention.h"
#include "model/ops/cross_op.h"

namespace t2r::ops {

/// Shape of `inputs`; its length is that of the queries.
/// @throws c10::Error  naming argument, value and what is allowed, if anything does not fit;
/// nothing has been launched
kernels::cuda::Shape check_cross(const CrossInputs& inputs);

}  // namespace t2r::ops
