#include "model/nets/block.h"

#include <algorithm>

#include "model/layers/recompute.h"

namespace t2r::model {
namespace {

using torch::Tensor;

Norm add_block_norm(const DecoderConfig& config,
                    std::string_view name,
                    int64_t layer,
                    ParameterSet& parameters) {
  return add_norm(
      config, concat(config.names.block(layer), name), config.hidden_size, layer + 1, parameters);
}

ResidualStream add_branch(const Tensor& sum_BTD, const Tensor& branch_BTD, const Norm* next) {
  if (next == nullptr) {
    const Tensor sum = sum_BTD + branch_BTD;
    return {sum, sum};
  }
  const Norm::Added added = next->add(sum_BTD, branch_BTD);
  return {added.sum, added.normalised};
}

}  // namespace

Tensor apply_dropout(const Tensor& x, double rate) {
  return rate > 0.0 ? at::dropout(x, rate, true) : x;
}

Block::Block(const DecoderConfig& config, int64_t layer, ParameterSet& parameters)
    : norms_are_behind_(config.block.norm_place == NormPlace::kBehind),
      attention_norm_(add_block_norm(config, config.names.attention_norm, layer, parameters)),
      attention_(config, layer, parameters),
      mlp_norm_(add_block_norm(config, config.names.mlp_norm, layer, parameters)),
      mlp_(config, layer, parameters) {}

Tensor Block::added_form(const Tensor& branch_BTD, const Norm& norm) const {
  return norms_are_behind_ ? norm(branch_BTD) : branch_BTD;
}

ResidualStream Block::forward(const ResidualStream& stream,
                              const Norm* next,
                              const ForwardOptions& options) const {
  const auto attend = [this, rope = options.rope, state = options.state](const Tensor& x) {
    return attention_.forward(x, rope.has_value() ? &*rope : nullptr, state);
  };
  const auto mlp = [this](const Tensor& x) { return mlp_.forward(x); };
  const auto add = [&](const Tensor& sum, const Tensor& branch, const Norm& own, const Norm* then) {
    return add_branch(sum, apply_dropout(added_form(branch, own), options.dropout), then);
  };
  const ResidualStream attended =
      add(stream.sum_BTD,
          options.recompute == Recompute::kAll ? recomputed(stream.input_BTD, attend)
                                               : attend(stream.input_BTD),
          attention_norm_,
          norms_are_behind_ ? nullptr : &mlp_norm_);
  return add(attended.sum_BTD,
             options.recompute != Recompute::kNothing ? recomputed(attended.input_BTD, mlp)
                                                      : mlp(attended.input_BTD),
             mlp_norm_,
             next);
}

Block::Transfer Block::forward_transfer(const Tensor& sum_BTD,
                                        const std::optional<RotaryEmbedding::Tables>& rope,
                                        const Tensor& counts_BT) const {
  const auto without_gradient = [](const auto& compute) {
    const torch::NoGradGuard no_grad;
    return compute();
  };
  const auto input_of = [&](const Tensor& sum, const Norm& norm) {
    return norms_are_behind_ ? sum : norm(sum);
  };
  const Tensor input = without_gradient([&] { return input_of(sum_BTD, attention_norm_); });
  const Attention::Transfer transfer =
      attention_.forward_transfer(input, rope.has_value() ? &*rope : nullptr, counts_BT);
  return {without_gradient([&] {
            const Tensor attended = sum_BTD + added_form(transfer.y_BTD, attention_norm_);
            return attended + added_form(mlp_.forward(input_of(attended, mlp_norm_)), mlp_norm_);
          }),
          transfer.error_sum};
}

Tensor Block::step(const Tensor& sum_BD,
                   const RotaryEmbedding::Tables* rope,
                   AttentionState& state) const {
  return mlp_.step(attention_.step(sum_BD, attention_norm_, rope, state), mlp_norm_);
}

int64_t Block::most_step_rows() const {
  return norms_are_behind_ ? 0 : std::min(attention_.most_step_rows(), mlp_.most_step_rows());
}

void Block::make_output_major() {
  attention_.make_output_major();
  mlp_.make_output_major();
}

}  // namespace t2r::model
