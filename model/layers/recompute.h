#pragma once

#include <torch/types.h>

#include <functional>

namespace t2r::model {

/// compute(x), whose intermediate results are not kept: the backward runs `compute` again. Source:
/// Chen et al. 2016, "Training Deep Nets with Sublinear Memory Cost".
///
/// @param compute  a function of x and of parameters alone (no dropout), which live until the
///                 backward; it gives one tensor, the same bits every time
torch::Tensor recomputed(const torch::Tensor& x,
                         std::function<torch::Tensor(const torch::Tensor&)> compute);

}  // namespace t2r::model
