#pragma once

#include "model/attention/linear_attention.h"

namespace t2r::model {

/// Causal linear attention in its parallel masked form, O(T^2): the oracle. Plain tensor
/// operations, differentiated by autograd, any dtype; arguments and result as
/// causal_linear_attention().
LinearAttentionOutput causal_linear_attention_parallel(const torch::Tensor& phi_q_BTHK,
                                                       const torch::Tensor& phi_k_BTHK,
                                                       const torch::Tensor& v_BTHV,
                                                       const LinearAttentionState* initial,
                                                       const DenominatorRule& rule);

/// The same in its recurrent form, one token after the other, written as the paper writes it.
LinearAttentionOutput causal_linear_attention_recurrent(const torch::Tensor& phi_q_BTHK,
                                                        const torch::Tensor& phi_k_BTHK,
                                                        const torch::Tensor& v_BTHV,
                                                        const LinearAttentionState* initial,
                                                        const DenominatorRule& rule);

}  // namespace t2r::model
