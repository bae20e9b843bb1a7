#pragma once

#include "model/kernels/cuda/causal/causal_attention.h"

namespace t2r::kernels::cuda {

/// Whether causal_features_backward() serves the problem: head size 64, 65 to 128 given features,
/// whole sequences without document boundaries.
bool has_causal_features_backward(const CausalArguments& arguments);

/// As causal_backward_bf16(), of which it is a part. Reads the states that the portable forward
/// kernel saves.
cudaError_t causal_features_backward(const CausalArguments& arguments, cudaStream_t stream);

}  // namespace t2r::kernels::cuda
