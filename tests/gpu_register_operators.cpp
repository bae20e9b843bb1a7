// The model's functions on GPU tensors take the operators that this program links.

#include "model/gpu_ops.h"
#include "model/ops/operators.h"

namespace {

[[maybe_unused]] const bool is_registered =
    t2r::model::gpu::register_operators(t2r::ops::operators());

}  // namespace
