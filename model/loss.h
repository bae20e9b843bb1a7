#pragma once

#include <torch/types.h>

namespace t2r::model {

/// Sum over tokens of -log softmax(x W^T)[target], in nats, as a float64 scalar.
///
/// The logits exist for a few rows at a time only, and the gradients are made in the same pass: [N,
/// vocabulary] is never held. Differentiable in x and W.
///
/// @param x_ND        float32
/// @param weight_VD   float32
/// @param targets_N   int64; negative targets are left out of the sum
torch::Tensor linear_cross_entropy_sum(const torch::Tensor& x_ND,
                                       const torch::Tensor& weight_VD,
                                       const torch::Tensor& targets_N);

/// The same per token and without gradients: [N] float32, 0 where the target is negative.
torch::Tensor linear_cross_entropy_values(const torch::Tensor& x_ND,
                                          const torch::Tensor& weight_VD,
                                          const torch::Tensor& targets_N);

/// Another model's distribution over the same vocabulary, softmax(x W^T), and its share of the
/// loss.
struct TeacherHead {
  torch::Tensor x_NE, weight_VE;  ///< of any width E; no gradient reaches them
  double share = 1.0;             ///< 0 to 1
};

/// linear_cross_entropy_sum beside a teacher: per token (1 - share) times the cross-entropy and
/// share times the divergence KL(teacher || student). Tokens whose target is negative are left out
/// of both. Source: Hinton et al. 2015, at temperature 1.
torch::Tensor linear_distillation_sum(const torch::Tensor& x_ND,
                                      const torch::Tensor& weight_VD,
                                      const torch::Tensor& targets_N,
                                      const TeacherHead& teacher);

}  // namespace t2r::model
