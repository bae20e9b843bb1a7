#include "model/nets/decoder_lm.h"

#include <ATen/CPUGeneratorImpl.h>

#include <algorithm>
#include <cmath>
#include <limits>

#include "base/error.h"
#include "base/seed.h"
#include "model/gpu_ops.h"
#include "model/layers/recompute.h"
#include "model/loss.h"

namespace t2r::model {
namespace {

using torch::Tensor;

torch::Generator generator_for(uint64_t seed) {
  return at::detail::createCPUGenerator(derive_seed(seed, SeedStream::kInit));
}

Tensor apply_dropout(const Tensor& x, double rate) {
  return rate > 0.0 ? at::dropout(x, rate, true) : x;
}

}  // namespace

int64_t DecoderState::num_bytes(int64_t tokens) const {
  int64_t total = 0;
  for (const AttentionState& layer : layers) total += layer.num_bytes(tokens);
  return total;
}

void DecoderState::set_host_position(int64_t tokens) {
  position = tokens;
  for (AttentionState& layer : layers) layer.length = tokens;
}

DecoderLM::DecoderLM(const DecoderConfig& config, torch::Device device)
    : config_(config), parameters_(device) {
  config_.validate();
  const bool is_gpt2 = config.family == Family::kGpt2;
  const int64_t hidden = config.hidden_size, last_group = config.num_layers + 1;
  token_embedding_VD_ =
      parameters_.add(is_gpt2 ? "transformer.wte.weight" : "model.embed_tokens.weight",
                      {config.vocab_size, hidden},
                      0,
                      true);
  if (is_gpt2) {
    position_embedding_ =
        parameters_.add("transformer.wpe.weight", {config.max_positions, hidden}, 0, true);
  } else {
    rope_ = std::make_unique<RotaryEmbedding>(config.rope, config.head_dim);
  }
  for (int64_t layer = 0; layer < config.num_layers; ++layer) {
    const std::string prefix = block_prefix(config, layer);
    Norm attention_norm = add_norm(
        config_, prefix + (is_gpt2 ? ".ln_1" : ".input_layernorm"), layer + 1, parameters_);
    Attention attention(config_, layer, parameters_);
    Norm mlp_norm = add_norm(config_,
                             prefix + (is_gpt2 ? ".ln_2" : ".post_attention_layernorm"),
                             layer + 1,
                             parameters_);
    Mlp mlp(config_, layer, parameters_);
    blocks_.push_back(
        {std::move(attention_norm), std::move(attention), std::move(mlp_norm), std::move(mlp)});
  }
  final_norm_ =
      add_norm(config_, is_gpt2 ? "transformer.ln_f" : "model.norm", last_group, parameters_);
  head_VD_ = config.tied_embeddings
                 ? token_embedding_VD_
                 : parameters_.add("lm_head.weight", {config.vocab_size, hidden}, last_group, true);
}

void DecoderLM::initialize(uint64_t seed) {
  const torch::NoGradGuard no_grad;
  torch::Generator generator = generator_for(seed);
  for (Parameter& parameter : parameters_.all()) {
    if (parameter.decays) {
      parameter.value.normal_(0.0, config_.initializer_range, generator);
    } else {
      const std::string& name = parameter.pieces.front().name;
      parameter.value.fill_(name.ends_with(".bias") ? 0.0 : 1.0);
    }
  }
  const double residual_scale = 1.0 / std::sqrt(2.0 * static_cast<double>(config_.num_layers));
  for (Block& block : blocks_) {
    Tensor attention_output = block.attention.output().weight,
           mlp_output = block.mlp.output().weight;
    attention_output.mul_(residual_scale);
    mlp_output.mul_(residual_scale);
  }
  initialize_feature_maps(seed);
}

void DecoderLM::initialize_feature_maps(uint64_t seed) {
  torch::Generator generator = generator_for(seed + 1);
  for (Block& block : blocks_) {
    if (block.attention.feature_map() != nullptr)
      block.attention.feature_map()->initialize(generator);
  }
}

void DecoderLM::check_tokens(const Tensor& tokens) const {
  const int64_t smallest = tokens.min().item<int64_t>(), largest = tokens.max().item<int64_t>();
  if (smallest < 0 || largest >= config_.vocab_size) {
    throw DataError(concat("token id ",
                           smallest < 0 ? smallest : largest,
                           " is outside the model's vocabulary [0, ",
                           config_.vocab_size,
                           ")"));
  }
}

int64_t DecoderLM::num_positions() const {
  return position_embedding_.defined() ? config_.max_positions
                                       : std::numeric_limits<int64_t>::max();
}

void DecoderLM::check_positions(int64_t end) const {
  if (end <= num_positions()) return;
  throw ConfigError(concat("position ",
                           end - 1,
                           " is past the model's learned position table of ",
                           config_.max_positions,
                           " rows"));
}

bool DecoderLM::is_step(const Tensor& tokens_BT, const DecoderState& state) const {
  return tokens_BT.is_cuda() && tokens_BT.size(1) == 1 && state.position > 0;
}

Tensor DecoderLM::embed(const Tensor& tokens_BT, const DecoderState* state) const {
  const int64_t length = tokens_BT.size(1), position = state != nullptr ? state->position : 0;
  check_positions(position + length);
  if (tokens_BT.is_cuda()) {
    Tensor position_TD;
    if (position_embedding_.defined()) {
      position_TD = state != nullptr && is_step(tokens_BT, *state)
                        ? position_embedding_.index_select(0, state->device_position)
                        : position_embedding_.narrow(0, position, length);
    }
    return gpu::embedding(token_embedding_VD_, tokens_BT, position_TD);
  }
  check_tokens(tokens_BT);
  const Tensor x_BTD = at::embedding(token_embedding_VD_, tokens_BT);
  if (!position_embedding_.defined()) return x_BTD;
  return x_BTD + position_embedding_.narrow(0, position, length);
}

std::optional<RotaryEmbedding::Tables> DecoderLM::rope_of(const Tensor& tokens_BT,
                                                          const DecoderState* state) const {
  if (rope_ == nullptr) return std::nullopt;
  const int64_t position = state != nullptr ? state->position : 0;
  rope_->reserve(position + tokens_BT.size(1), tokens_BT.device());
  if (state != nullptr && is_step(tokens_BT, *state)) return rope_->at(state->device_position);
  return rope_->at(position, tokens_BT.size(1), tokens_BT.device());
}

Tensor DecoderLM::hidden(const Tensor& tokens_BT, const ForwardOptions& options) const {
  DecoderState* state = options.state;
  Tensor x_BTD = apply_dropout(embed(tokens_BT, state), options.dropout);
  const std::optional<RotaryEmbedding::Tables> rope = rope_of(tokens_BT, state);
  Tensor normalised_BTD = blocks_.front().attention_norm(x_BTD);
  // Each branch's addition and the norm behind it are one operation.
  const auto add = [&](const Tensor& branch_BTD, const Norm& next) {
    const Norm::Added added = next.add(x_BTD, apply_dropout(branch_BTD, options.dropout));
    x_BTD = added.sum;
    normalised_BTD = added.normalised;
  };
  for (size_t layer = 0; layer < blocks_.size(); ++layer) {
    const Block& block = blocks_[layer];
    AttentionState* layer_state = state != nullptr ? &state->layers[layer] : nullptr;
    const auto attention = [&block, rope, layer_state](const Tensor& x) {
      return block.attention.forward(x, rope.has_value() ? &*rope : nullptr, layer_state);
    };
    const auto mlp = [&block](const Tensor& x) { return block.mlp.forward(x); };
    add(options.recompute == Recompute::kAll ? recomputed(normalised_BTD, attention)
                                             : attention(normalised_BTD),
        block.mlp_norm);
    add(options.recompute != Recompute::kNothing ? recomputed(normalised_BTD, mlp)
                                                 : mlp(normalised_BTD),
        layer + 1 < blocks_.size() ? blocks_[layer + 1].attention_norm : final_norm_);
  }
  if (state != nullptr) {
    state->position += tokens_BT.size(1);
    if (state->device_position.defined()) state->device_position.add_(tokens_BT.size(1));
  }
  return normalised_BTD;
}

Tensor DecoderLM::next_logits(const Tensor& tokens_BT, DecoderState& state) const {
  if (is_step(tokens_BT, state) && tokens_BT.size(0) <= most_step_rows_) {
    return step(tokens_BT, state);
  }
  const Tensor hidden_BTD = hidden(tokens_BT, {.state = &state});
  return logits(hidden_BTD.select(1, hidden_BTD.size(1) - 1));
}

Tensor DecoderLM::step(const Tensor& tokens_BT, DecoderState& state) const {
  Tensor x_BD = embed(tokens_BT, &state).squeeze(1);
  if (rope_ != nullptr) rope_->reserve(state.position + 1, device());
  for (size_t layer = 0; layer < blocks_.size(); ++layer) {
    const Block& block = blocks_[layer];
    x_BD = block.attention.step(x_BD,
                                block.attention_norm,
                                rope_ != nullptr ? &rope_->tables() : nullptr,
                                state.layers[layer]);
    x_BD = block.mlp.step(x_BD, block.mlp_norm);
  }
  ++state.position;
  state.device_position.add_(1);
  return gpu::step_linear({.x_NI = x_BD,
                           .weight_OI = head_VD_,
                           .norm_weight = final_norm_.weight,
                           .norm_bias = final_norm_.bias,
                           .eps = final_norm_.eps,
                           .float_output = true});
}

Tensor DecoderLM::logits(const Tensor& hidden) const {
  return at::linear(hidden, head_VD_);
}

Tensor DecoderLM::loss_sum(const Tensor& tokens_BT,
                           const Tensor& targets_BT,
                           const ForwardOptions& options) const {
  const Tensor x = hidden(tokens_BT, options);
  return linear_cross_entropy_sum(x.flatten(0, 1), head_VD_, targets_BT.flatten());
}

Tensor DecoderLM::distillation_loss_sum(const Tensor& tokens_BT,
                                        const Tensor& targets_BT,
                                        const Distillation& distillation,
                                        const ForwardOptions& options) const {
  TeacherHead head{.weight_VE = distillation.teacher->head_VD_, .share = distillation.share};
  {
    const torch::NoGradGuard no_grad;
    head.x_NE = distillation.teacher->hidden(tokens_BT).flatten(0, 1);
  }
  const Tensor x = hidden(tokens_BT, options);
  return linear_distillation_sum(x.flatten(0, 1), head_VD_, targets_BT.flatten(), head);
}

Tensor DecoderLM::transfer_loss_sum(const Tensor& tokens_BT) const {
  Tensor total;
  const std::optional<RotaryEmbedding::Tables> rope = rope_of(tokens_BT, nullptr);
  const auto without_gradient = [](const auto& compute) {
    const torch::NoGradGuard no_grad;
    return compute();
  };
  Tensor x_BTD = without_gradient([&] { return embed(tokens_BT, nullptr); });
  for (const Block& block : blocks_) {
    const Tensor normalised = without_gradient([&] { return block.attention_norm(x_BTD); });
    const Attention::Transfer transfer =
        block.attention.forward_transfer(normalised, rope.has_value() ? &*rope : nullptr);
    if (transfer.error_sum.defined())
      total = total.defined() ? total + transfer.error_sum : transfer.error_sum;
    x_BTD = without_gradient([&] {
      const Tensor attended = x_BTD + transfer.y_BTD;
      return attended + block.mlp.forward(block.mlp_norm(attended));
    });
  }
  if (!total.defined() || !total.requires_grad()) {
    throw ConfigError(
        "attention transfer needs linear layers whose feature map has parameters (t2r, hedgehog)");
  }
  return total;
}

Tensor DecoderLM::token_losses(const Tensor& tokens_BT, const Tensor& targets_BT) const {
  const torch::NoGradGuard no_grad;
  const Tensor x = hidden(tokens_BT);
  return linear_cross_entropy_values(x.flatten(0, 1), head_VD_, targets_BT.flatten())
      .view(targets_BT.sizes());
}

DecoderState DecoderLM::new_state() const {
  DecoderState state;
  state.layers.resize(blocks_.size());
  if (device().is_cuda()) {
    state.device_position = torch::zeros({1}, torch::TensorOptions(device()).dtype(torch::kInt64));
    for (AttentionState& layer : state.layers) layer.device_length = state.device_position;
  }
  return state;
}

DecoderState DecoderLM::random_state(int64_t batch, int64_t length, int64_t capacity) const {
  DecoderState state = new_state();
  state.position = length;
  if (state.device_position.defined()) state.device_position.fill_(length);
  for (size_t layer = 0; layer < blocks_.size(); ++layer) {
    state.layers[layer] = blocks_[layer].attention.random_state(batch, length, capacity);
    state.layers[layer].device_length = state.device_position;
  }
  reserve(state, capacity);
  return state;
}

int64_t DecoderLM::capacity(const DecoderState& state) const {
  int64_t capacity = rope_ != nullptr ? rope_->capacity() : std::numeric_limits<int64_t>::max();
  for (const AttentionState& layer : state.layers) capacity = std::min(capacity, layer.capacity());
  return capacity;
}

void DecoderLM::reserve(DecoderState& state, int64_t tokens) const {
  if (rope_ != nullptr) rope_->reserve(tokens, device());
  for (AttentionState& layer : state.layers) layer.reserve(tokens);
}

void DecoderLM::prepare_generation() {
  for (Block& block : blocks_) block.attention.merge_feature_map();
  if (!device().is_cuda()) return;
  most_step_rows_ = Linear{.weight = head_VD_}.most_step_rows(/*is_behind_norm=*/true);
  for (Block& block : blocks_) {
    block.attention.make_output_major();
    block.mlp.make_output_major();
    most_step_rows_ =
        std::min({most_step_rows_, block.attention.most_step_rows(), block.mlp.most_step_rows()});
  }
}

bool DecoderLM::has_captured_step() const {
  return std::all_of(blocks_.begin(), blocks_.end(), [](const Block& block) {
    return block.attention.has_captured_step();
  });
}

}  // namespace t2r::model
