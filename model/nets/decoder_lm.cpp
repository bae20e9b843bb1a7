#include "model/nets/decoder_lm.h"

#include <ATen/CPUGeneratorImpl.h>

#include <algorithm>
#include <cmath>
#include <limits>

#include "base/error.h"
#include "base/seed.h"
#include "model/gpu_ops.h"

namespace t2r::model {
namespace {

using torch::Tensor;

torch::Generator generator_for(uint64_t seed) {
  return at::detail::createCPUGenerator(derive_seed(seed, SeedStream::kInit));
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
  const TensorNames& names = config.names;
  const int64_t hidden = config.hidden_size, last_group = config.num_layers + 1;
  token_embedding_VD_ = parameters_.add(names.token_table(), {config.vocab_size, hidden}, 0, true);
  if (config.has_learned_positions()) {
    position_embedding_ =
        parameters_.add(names.position_table(), {config.max_positions, hidden}, 0, true);
  } else {
    rope_ = std::make_unique<RotaryEmbedding>(config.rope, config.head_dim);
  }
  for (int64_t layer = 0; layer < config.num_layers; ++layer)
    blocks_.emplace_back(config_, layer, parameters_);
  final_norm_ =
      add_norm(config_, concat(names.model, names.final_norm), hidden, last_group, parameters_);
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
    Tensor attention_output = block.attention().output().weight,
           mlp_output = block.mlp().output().weight;
    attention_output.mul_(residual_scale);
    mlp_output.mul_(residual_scale);
  }
  initialize_feature_maps(seed);
}

void DecoderLM::initialize_feature_maps(uint64_t seed) {
  torch::Generator generator = generator_for(seed + 1);
  for (Block& block : blocks_) {
    if (block.attention().feature_map() != nullptr)
      block.attention().feature_map()->initialize(generator);
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
  const Tensor x_BTD = apply_dropout(embed(tokens_BT, state), options.dropout);
  const std::optional<RotaryEmbedding::Tables> rope = rope_of(tokens_BT, state);
  const Norm* first = blocks_.front().norm_in_front();
  ResidualStream stream{x_BTD, first != nullptr ? (*first)(x_BTD) : x_BTD};
  for (size_t layer = 0; layer < blocks_.size(); ++layer) {
    const bool is_last = layer + 1 == blocks_.size();
    stream = blocks_[layer].forward(stream,
                                    is_last ? &final_norm_ : blocks_[layer + 1].norm_in_front(),
                                    {.dropout = options.dropout,
                                     .recompute = options.recompute,
                                     .rope = rope,
                                     .state = state != nullptr ? &state->layers[layer] : nullptr});
  }
  if (state != nullptr) {
    state->position += tokens_BT.size(1);
    if (state->device_position.defined()) state->device_position.add_(tokens_BT.size(1));
  }
  return stream.input_BTD;
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
    x_BD = blocks_[layer].step(
        x_BD, rope_ != nullptr ? &rope_->tables() : nullptr, state.layers[layer]);
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

Tensor DecoderLM::target_states(const TensorBatch& batch, const LossOptions& options) const {
  return hidden(batch.at(kInputs), {.dropout = options.dropout, .recompute = options.recompute})
      .flatten(0, 1);
}

Tensor DecoderLM::transfer_error_sum(const TensorBatch& batch) const {
  const Tensor& tokens_BT = batch.at(kInputs);
  const Tensor counts_BT = batch.is_padded() ? batch.at(kTargets).ge(0) : Tensor();
  Tensor total;
  const std::optional<RotaryEmbedding::Tables> rope = rope_of(tokens_BT, nullptr);
  Tensor x_BTD;
  {
    const torch::NoGradGuard no_grad;
    x_BTD = embed(tokens_BT, nullptr);
  }
  for (const Block& block : blocks_) {
    const auto [sum_BTD, error_sum] = block.forward_transfer(x_BTD, rope, counts_BT);
    if (error_sum.defined()) total = total.defined() ? total + error_sum : error_sum;
    x_BTD = sum_BTD;
  }
  if (!total.defined() || !total.requires_grad()) {
    throw ConfigError(
        "attention transfer needs linear layers whose feature map has parameters (t2r, hedgehog)");
  }
  return total;
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
    state.layers[layer] = blocks_[layer].attention().random_state(batch, length, capacity);
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
  for (Block& block : blocks_) block.attention().merge_feature_map();
  if (!device().is_cuda()) return;
  most_step_rows_ = Linear{.weight = head_VD_}.most_step_rows(/*is_behind_norm=*/true);
  for (Block& block : blocks_) {
    block.make_output_major();
    most_step_rows_ = std::min(most_step_rows_, block.most_step_rows());
  }
}

bool DecoderLM::has_captured_step() const {
  return std::all_of(blocks_.begin(), blocks_.end(), [](const Block& block) {
    return block.attention().has_captured_step();
  });
}

}  // namespace t2r::model
