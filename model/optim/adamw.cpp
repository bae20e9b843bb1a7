#include "model/optim/adamw.h"

#include <ATen/Parallel.h>

#include <cmath>
#include <vector>

#include "base/error.h"
#include "model/kernels/cpu/pointwise_cpu.h"

namespace t2r::model {
namespace {

constexpr int64_t kBlock = 1 << 15;  // elements per task

}  // namespace

AdamW::AdamW(const ParameterArena& arena, const AdamWOptions& options)
    : arena_(arena),
      options_(options),
      first_moment_(torch::zeros_like(arena.masters())),
      second_moment_(torch::zeros_like(arena.masters())) {}

AdamW::Norm AdamW::norm(double loss_sum, int64_t num_targets, double clip_norm) const {
  const double normaliser = 1.0 / static_cast<double>(num_targets);
  const double value = l2_norm(arena_.gradients()) * normaliser;
  const double clip = clip_norm > 0.0 && value > clip_norm ? clip_norm / value : 1.0;
  return {.value = value,
          .gradient_scale = normaliser * clip,
          .is_finite = std::isfinite(value) && std::isfinite(loss_sum)};
}

std::array<AdamW::State, 2> AdamW::state() const {
  return {State{"first_moment", first_moment_}, State{"second_moment", second_moment_}};
}

void AdamW::reset() {
  for (const State& kept : state()) kept.values.zero_();
}

void AdamW::update(const Step& step) {
  const auto number = static_cast<double>(step.number);
  kernels::AdamW args{
      .parameter = arena_.masters().data_ptr<float>(),
      .gradient = arena_.gradients().data_ptr<float>(),
      .first_moment = first_moment_.data_ptr<float>(),
      .second_moment = second_moment_.data_ptr<float>(),
      .gradient_scale = static_cast<float>(step.gradient_scale),
      .learning_rate = 0.0f,
      .beta1 = static_cast<float>(options_.beta1),
      .beta2 = static_cast<float>(options_.beta2),
      .eps = static_cast<float>(options_.eps),
      .weight_decay = 0.0f,
      .bias_correction1 = static_cast<float>(1.0 - std::pow(options_.beta1, number)),
      .bias_correction2_sqrt =
          static_cast<float>(std::sqrt(1.0 - std::pow(options_.beta2, number)))};
  const auto& table = kernels::pointwise_kernels();
  for (const ParameterArena::Slice& slice : arena_.slices()) {
    const Parameter& parameter = arena_.parameters().all()[slice.index];
    const bool is_map = parameter.pieces.front().is_new;
    args.learning_rate = static_cast<float>(is_map ? step.map_learning_rate : step.learning_rate);
    args.weight_decay = parameter.decays ? static_cast<float>(options_.weight_decay) : 0.0f;
    const int64_t begin = slice.offset, end = slice.offset + slice.numel;
    at::parallel_for(
        begin, end, kBlock, [&](int64_t first, int64_t last) { table.adamw(args, first, last); });
  }
}

double l2_norm(const torch::Tensor& flat) {
  require(flat.dim() == 1 && flat.is_contiguous(), "l2_norm: a flat tensor is needed");
  const int64_t size = flat.numel(), num_blocks = (size + kBlock - 1) / kBlock;
  std::vector<double> partial(num_blocks);
  const float* data = flat.data_ptr<float>();
  const auto& table = kernels::pointwise_kernels();
  at::parallel_for(0, num_blocks, 1, [&](int64_t first, int64_t last) {
    for (int64_t i = first; i < last; ++i) {
      partial[i] = table.sum_of_squares(data, i * kBlock, std::min(size, (i + 1) * kBlock));
    }
  });
  double total = 0.0;
  for (const double block : partial) total += block;
  return std::sqrt(total);
}

}  // namespace t2r::model
