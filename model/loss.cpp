#include "model/loss.h"

#include <ATen/Parallel.h>
#include <torch/csrc/autograd/custom_function.h>

#include <algorithm>

#include "base/error.h"
#include "model/gpu_ops.h"
#include "model/kernels/cpu/pointwise_cpu.h"

namespace t2r::model {
namespace {

using torch::Tensor;
using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

// Rows of logits that are held at once: about 16 MB. Fewer rows would read and write the gradient
// of W more often.
int64_t logits_rows(int64_t vocab_size) {
  return std::clamp<int64_t>((1 << 22) / vocab_size, 64, 1024);
}

/// Rows of logits. A loss writes their losses and, if `needs_gradient`, its gradient into the
/// logits' place.
struct RowBlock {
  Tensor logits;   ///< [rows, V]
  Tensor losses;   ///< [rows], zeros
  Tensor targets;  ///< [rows]; negative: left out, a loss and a gradient of zeros
  int64_t begin;   ///< the first row's number
  bool needs_gradient;
};

struct Pass {
  Tensor losses;               ///< [N]
  Tensor grad_x, grad_weight;  ///< of their sum; undefined ones were not asked for
};

/// A loss of x W^T's rows: `loss` is called with every block (RowBlock), in order.
template <class Loss>
Pass run(const Tensor& x,
         const Tensor& weight,
         const Tensor& targets,
         const Loss& loss,
         bool needs_gradient) {
  const int64_t num_rows = x.size(0), vocab_size = weight.size(0), step = logits_rows(vocab_size);
  Pass pass{.losses = torch::zeros({num_rows}, x.options())};
  if (needs_gradient) {
    pass.grad_x = torch::empty_like(x);
    pass.grad_weight = torch::empty_like(weight);
  }
  const Tensor logits_buffer = torch::empty({std::min(step, num_rows), vocab_size}, x.options());
  for (int64_t begin = 0; begin < num_rows; begin += step) {
    const int64_t count = std::min(step, num_rows - begin);
    Tensor logits = logits_buffer.narrow(0, 0, count), rows = x.narrow(0, begin, count);
    at::mm_out(logits, rows, weight.t());
    loss({.logits = logits,
          .losses = pass.losses.narrow(0, begin, count),
          .targets = targets.narrow(0, begin, count),
          .begin = begin,
          .needs_gradient = needs_gradient});
    if (needs_gradient) {
      Tensor grad_rows = pass.grad_x.narrow(0, begin, count);
      at::mm_out(grad_rows, logits, weight);
      at::addmm_out(
          pass.grad_weight, pass.grad_weight, logits.t(), rows, begin == 0 ? 0.0 : 1.0, 1.0);
    }
  }
  return pass;
}

/// The sum of such a loss over the rows.
template <class Loss>
class LinearLoss : public torch::autograd::Function<LinearLoss<Loss>> {
 public:
  static Tensor forward(AutogradContext* ctx,
                        const Tensor& x,
                        const Tensor& weight,
                        const Tensor& targets,
                        const Loss& loss) {
    const Pass pass = run(x, weight, targets, loss, x.requires_grad() || weight.requires_grad());
    ctx->saved_data["grad_x"] = pass.grad_x;
    ctx->saved_data["grad_weight"] = pass.grad_weight;
    return pass.losses.sum(torch::kFloat64);
  }

  static variable_list backward(AutogradContext* ctx, const variable_list& gradients) {
    Tensor grad_x = ctx->saved_data["grad_x"].toTensor(),
           grad_weight = ctx->saved_data["grad_weight"].toTensor();
    ctx->saved_data.clear();  // the buffers are handed over: a second backward is refused by
                              // autograd's own rule
    const double scale = gradients[0].item<double>();
    if (scale != 1.0) {
      grad_x.mul_(scale);
      grad_weight.mul_(scale);
    }
    return {grad_x, grad_weight, Tensor(), Tensor()};
  }
};

struct CrossEntropyLoss {
  void operator()(const RowBlock& block) const {
    const int64_t vocab_size = block.logits.size(1);
    float *logits = block.logits.data_ptr<float>(), *losses = block.losses.data_ptr<float>();
    const int64_t* targets = block.targets.data_ptr<int64_t>();
    const auto& table = kernels::pointwise_kernels();
    at::parallel_for(0, block.logits.size(0), 4, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) {
        float* row = logits + i * vocab_size;
        if (targets[i] >= 0) {
          losses[i] = block.needs_gradient ? table.cross_entropy_row(row, vocab_size, targets[i])
                                           : table.cross_entropy_value(row, vocab_size, targets[i]);
        } else if (block.needs_gradient) {
          std::fill(row, row + vocab_size, 0.0f);
        }
      }
    });
  }
};

struct DistillationLoss {
  TeacherHead teacher;

  void operator()(const RowBlock& block) const {
    const Tensor targets = block.targets.unsqueeze(1), left_out = targets < 0,
                 existing = targets.clamp_min(0);
    const Tensor teacher_rows = teacher.x_NE.narrow(0, block.begin, targets.size(0));
    const Tensor log_teacher = at::mm(teacher_rows, teacher.weight_VE.t()).log_softmax(1),
                 log_student = block.logits.log_softmax(1), probabilities = log_teacher.exp();
    const Tensor cross_entropy = log_student.gather(1, existing).neg(),
                 divergence = (probabilities * (log_teacher - log_student)).sum(1, true);
    const double text_share = 1.0 - teacher.share;
    block.losses.unsqueeze(1)
        .copy_(cross_entropy * text_share + divergence * teacher.share)
        .masked_fill_(left_out, 0.0);
    if (!block.needs_gradient) return;
    Tensor logits = block.logits;
    at::exp_out(logits, log_student)
        .sub_(probabilities, teacher.share)
        .scatter_add_(1, existing, torch::full_like(cross_entropy, -text_share))
        .masked_fill_(left_out, 0.0);
  }
};

void check_targets(const Tensor& x, const Tensor& weight, const Tensor& targets) {
  require(x.dim() == 2 && weight.dim() == 2 && targets.dim() == 1,
          "cross entropy: x [N, D], weight [V, D], targets [N]");
  require(x.size(0) == targets.size(0) && x.size(1) == weight.size(1),
          "cross entropy: sizes of x, weight, targets differ");
  require(x.scalar_type() == torch::kFloat32 && weight.scalar_type() == torch::kFloat32,
          "cross entropy: float32 only");
  require(targets.scalar_type() == torch::kInt64, "cross entropy: targets must be int64");
  if (targets.numel() > 0 && targets.max().item<int64_t>() >= weight.size(0)) {
    throw DataError(concat("target token ",
                           targets.max().item<int64_t>(),
                           " is outside the vocabulary of ",
                           weight.size(0)));
  }
}

void check_teacher(const Tensor& x, const Tensor& weight, const TeacherHead& teacher) {
  require(teacher.x_NE.dim() == 2 && teacher.weight_VE.dim() == 2 &&
              teacher.x_NE.size(0) == x.size(0) && teacher.weight_VE.size(0) == weight.size(0) &&
              teacher.x_NE.size(1) == teacher.weight_VE.size(1),
          "distillation: teacher x [N, E], weight [V, E]");
  require(teacher.share >= 0.0 && teacher.share <= 1.0, "distillation: share must be 0 to 1");
}

}  // namespace

Tensor linear_cross_entropy_sum(const Tensor& x_ND,
                                const Tensor& weight_VD,
                                const Tensor& targets_N) {
  if (x_ND.is_cuda()) return gpu::linear_cross_entropy_sum(x_ND, weight_VD, targets_N);
  check_targets(x_ND, weight_VD, targets_N);
  return LinearLoss<CrossEntropyLoss>::apply(
      x_ND.contiguous(), weight_VD.contiguous(), targets_N.contiguous(), CrossEntropyLoss());
}

Tensor linear_distillation_sum(const Tensor& x_ND,
                               const Tensor& weight_VD,
                               const Tensor& targets_N,
                               const TeacherHead& teacher) {
  if (x_ND.is_cuda()) return gpu::linear_distillation_sum(x_ND, weight_VD, targets_N, teacher);
  check_targets(x_ND, weight_VD, targets_N);
  check_teacher(x_ND, weight_VD, teacher);
  return LinearLoss<DistillationLoss>::apply(
      x_ND.contiguous(), weight_VD.contiguous(), targets_N.contiguous(), DistillationLoss{teacher});
}

Tensor linear_cross_entropy_values(const Tensor& x_ND,
                                   const Tensor& weight_VD,
                                   const Tensor& targets_N) {
  if (x_ND.is_cuda()) return gpu::linear_cross_entropy_values(x_ND, weight_VD, targets_N);
  check_targets(x_ND, weight_VD, targets_N);
  const torch::NoGradGuard no_grad;
  return run(x_ND,
             weight_VD,
             targets_N.contiguous(),
             CrossEntropyLoss(),
             /*needs_gradient=*/false)
      .losses;
}

}  // namespace t2r::model
