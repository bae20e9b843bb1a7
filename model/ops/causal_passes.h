#pragma once

#include "model/ops/causal_inputs.h"

/// Between autograd and the kernels: the passes of causal linear attention without autograd.
namespace t2r::ops {

/// Inputs that the kernels take as they are, and their shape.
struct CausalProblem {
  explicit CausalProblem(const CausalInputs& inputs) : in(inputs), shape(check_causal(inputs)) {}

  bool tensor_cores() const { return in.q_BTHd.scalar_type() == at::kBFloat16; }
  at::TensorOptions state_options() const {
    return in.q_BTHd.options().dtype(in.q_BTHd.scalar_type() == at::kDouble ? at::kDouble
                                                                            : at::kFloat);
  }
  std::vector<int64_t> output_sizes() const {
    return {shape.batch, shape.length, shape.query_heads, shape.head_size};
  }
  std::vector<int64_t> state_sizes(int heads) const {
    return {shape.batch, heads, shape.feature_size, shape.head_size};
  }

  CausalInputs in;
  kernels::cuda::Shape shape;
};

struct CausalResult {
  Tensor o, s, z;
  Tensor states;  ///< for the backward, if `save`
};

/// With a head for every query head; undefined where an input is absent.
struct CausalGradients {
  Tensor q, k, v, weight, bias, initial_s, initial_z;
};

/// Whether this device has a tensor-core kernel for the shape.
bool has_causal_kernel(const kernels::cuda::Shape& shape, bool has_map);

CausalResult causal_forward(const CausalProblem& problem, bool save, bool want_state);

/// @param grad     gradients of the outputs; those of the state may be undefined
/// @param written  what it has of q, k and v is written in place (bfloat16 alone)
CausalGradients causal_backward(const CausalProblem& problem,
                                const Tensor& states,
                                const CausalOutputs& grad,
                                CausalGradients written = {});

/// The passes on given features in bfloat16, for operators that make the features themselves.
struct FeaturesForward {
  Tensor o_BTHd;
  Tensor states;  ///< for the backward, if `save`
};
struct FeatureGradients {
  Tensor phi_q_BTHK, phi_k_BTHK, v_BTHd;
};
/// Whether the passes serve so many features and columns of v; both lie in units of 16 bytes then.
bool has_features_passes(int64_t features, int64_t head_size);
FeaturesForward causal_features_forward(const CausalInputs& inputs, bool save);
/// @param grad_v_BTHd  memory for that gradient if v has as many heads as q, or undefined
/// @return             gradients with the heads of their tensors
FeatureGradients causal_features_backward(const CausalInputs& inputs,
                                          const Tensor& states,
                                          const Tensor& grad_o,
                                          const Tensor& grad_v_BTHd);

}  // namespace t2r::ops
