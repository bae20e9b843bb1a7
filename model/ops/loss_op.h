#pragma once

#include <ATen/core/Tensor.h>

namespace t2r::ops {

using at::Tensor;

/// Sum over tokens of -log softmax(x W^T)[target], in nats, as a float64 scalar on the device.
///
/// Logits exist for some rows at a time, in x's dtype; the gradients of x and W are made in the
/// same pass (only if autograd will ask for them), that of W in float32 until the end, and backward
/// multiplies them by the incoming gradient without waiting for the device. It can run once per
/// forward. Runs on the current stream and can be captured in a CUDA graph. Deterministic.
/// Registered as torch.ops.t2r.linear_cross_entropy_sum.
/// @param x_ND        bfloat16 or float32
/// @param weight_VD   x's dtype
/// @param targets_N   int64; negative: left out; V or more: the loss is NaN (nobody waits for the
/// device to say so)
/// @param chunk_rows  rows of logits that exist at a time; 0: as many as 512 MB hold
/// @throws c10::Error  naming argument, value and what is allowed; nothing has been launched
Tensor linear_cross_entropy_sum(const Tensor& x_ND,
                                const Tensor& weight_VD,
                                const Tensor& targets_N,
                                int64_t chunk_rows = 0);

/// Where a student's distribution comes from besides the text: a teacher's, softmax(x W^T), over
/// the same vocabulary.
struct Teacher {
  Tensor x_NE;  ///< the student's dtype, any width; no gradient reaches it
  Tensor weight_VE;
  double share = 1.0;  ///< of the loss, 0 to 1
};

/// linear_cross_entropy_sum beside a teacher: per token (1 - share) times the cross-entropy and
/// share times the divergence KL(teacher || student), both of tokens whose target counts. The rest
/// as above; both models' logits share the memory. Registered as
/// torch.ops.t2r.linear_distillation_sum. Source: Hinton et al. 2015, at temperature 1.
Tensor linear_distillation_sum(const Tensor& x_ND,
                               const Tensor& weight_VD,
                               const Tensor& targets_N,
                               const Teacher& teacher,
                               int64_t chunk_rows = 0);

/// linear_cross_entropy_sum per token and without gradients: [N] float32, 0 where the target is
/// negative. Registered as torch.ops.t2r.linear_cross_entropy_values.
Tensor linear_cross_entropy_values(const Tensor& x_ND,
                                   const Tensor& weight_VD,
                                   const Tensor& targets_N,
                                   int64_t chunk_rows = 0);

}  // namespace t2r::ops
