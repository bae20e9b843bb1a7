#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <optional>
#include <vector>

#include "model/kernels/cuda/pointwise/adamw.h"

namespace t2r::ops {

using at::Tensor;

/// The optimizer's step on flat memory on a GPU. Host and kernels speak through `control`, a
/// float64 tensor of kernels::cuda::kControlSlots values (kernels::cuda::ControlSlot names them),
/// so that no call waits for the GPU and a CUDA graph can hold a whole step. All run on the current
/// stream, can be captured, and are deterministic and not differentiable. Registered as
/// torch.ops.t2r.gradient_norm and adamw_.

/// A zeroed control tensor on `device`.
Tensor make_control(const at::Device& device);

/// Norm of the flat gradient over num_tokens, and the step's decisions: skip (norm or loss not
/// finite), number of the update, clipping, bias corrections.
/// @param gradients  [N] bfloat16 or float32
/// @param control    changed in place
/// @throws c10::Error  naming argument, value and what is allowed, if anything does not fit;
/// nothing has been changed
void gradient_norm(const Tensor& gradients, const Tensor& control, double beta1, double beta2);

struct AdamWTensors {
  Tensor master;                 ///< [N] float32, changed
  std::optional<Tensor> values;  ///< [N] bfloat16: the model's parameters, rounded from the master;
                                 ///< absent if the master is the model
  Tensor gradients;              ///< [N] bfloat16 or float32
  Tensor first_moment;           ///< [N] float32, changed
  Tensor second_moment;          ///< [N] float32, changed
  Tensor spans;    ///< [n, 3] int64 as make_spans() makes them: begin, end, flags; what no span has
                   ///< stays as it is
  Tensor control;  ///< after gradient_norm()
};

struct AdamWSettings {
  double beta1 = 0.9;
  double beta2 = 0.95;
  double eps = 1e-8;
  double weight_decay = 0.1;
};

/// One step of AdamW, as model::AdamW computes it on the CPU, in one kernel; nothing happens if
/// control says that the step is skipped.
/// @throws c10::Error  as gradient_norm()
void adamw(const AdamWTensors& tensors, const AdamWSettings& settings);

/// A part of flat memory with one rule.
struct ParameterSlice {
  int64_t offset = 0;
  int64_t numel = 0;
  bool decays = true;   ///< weight decay applies
  bool is_map = false;  ///< the map's learning rate applies
};

inline constexpr int64_t kSpanElements =
    1 << 14;  ///< at most, per span: enough of them to keep every multiprocessor busy to the end

/// The slices, cut into spans of at most kSpanElements at multiples of 4 elements of flat memory,
/// on `device`. [n, 3] int64.
Tensor make_spans(const std::vector<ParameterSlice>& slices, const at::Device& device);

}  // namespace t2r::ops
