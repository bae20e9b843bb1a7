#include "model/attention/attention.h"

#include <algorithm>
#include <array>
#include <limits>

#include "base/error.h"
#include "model/fused_ops.h"
#include "model/gpu_ops.h"

namespace t2r::model {
namespace {

using torch::Tensor;

Tensor zeros_with_rows(const Tensor& like_BHTd, int64_t rows) {
  std::vector<int64_t> sizes = like_BHTd.sizes().vec();
  sizes[2] = rows;
  return torch::zeros(sizes, like_BHTd.options());
}

// Appends new keys and values; the buffers double when they are full.
void append(AttentionState& state, const Tensor& k_BHTd, const Tensor& v_BHTd) {
  const int64_t new_tokens = k_BHTd.size(2), wanted = state.length + new_tokens;
  if (!state.keys_BHTd.defined()) {
    const int64_t capacity = std::max<int64_t>(wanted, 64);
    state.keys_BHTd = zeros_with_rows(k_BHTd, capacity);
    state.values_BHTd = zeros_with_rows(v_BHTd, capacity);
  } else if (state.capacity() < wanted) {
    state.reserve(std::max(wanted, 2 * state.capacity()));
  }
  state.keys_BHTd.narrow(2, state.length, new_tokens).copy_(k_BHTd);
  state.values_BHTd.narrow(2, state.length, new_tokens).copy_(v_BHTd);
  state.length = wanted;
}

// Row i may look at every cached token and at new tokens up to itself.
Tensor offset_causal_mask(int64_t new_tokens, int64_t all_tokens, const torch::Device& device) {
  return torch::ones({new_tokens, all_tokens}, torch::TensorOptions(device).dtype(torch::kBool))
      .tril(all_tokens - new_tokens);
}

}  // namespace

int64_t AttentionState::num_bytes(int64_t tokens) const {
  if (linear.has_value()) {
    return (linear->s_BHKV.numel() + linear->z_BHK.numel()) * linear->s_BHKV.element_size();
  }
  if (!keys_BHTd.defined()) return 0;
  return 2 * keys_BHTd.size(0) * keys_BHTd.size(1) * tokens * keys_BHTd.size(3) *
         keys_BHTd.element_size();
}

int64_t AttentionState::capacity() const {
  return keys_BHTd.defined() ? keys_BHTd.size(2) : std::numeric_limits<int64_t>::max();
}

void AttentionState::reserve(int64_t tokens) {
  if (capacity() >= tokens) return;
  for (Tensor* const buffer : {&keys_BHTd, &values_BHTd}) {
    const Tensor grown = zeros_with_rows(*buffer, tokens);
    grown.narrow(2, 0, length).copy_(buffer->narrow(2, 0, length));
    *buffer = grown;
  }
}

Attention::Attention(const DecoderConfig& config, int64_t layer, ParameterSet& parameters)
    : num_heads_(config.num_heads),
      num_kv_heads_(config.num_kv_heads),
      head_dim_(config.head_dim),
      query_scale_(config.query_scale(layer)),
      has_rope_(config.has_rope(layer)) {
  const int64_t group = layer + 1, q_width = num_heads_ * head_dim_,
                kv_width = num_kv_heads_ * head_dim_;
  const TensorNames& names = config.names;
  const std::string prefix = concat(names.block(layer), names.attention);
  const bool is_fused = names.qkv[1].empty();
  LinearNames qkv{{concat(prefix, names.qkv[0])}, {is_fused ? q_width + 2 * kv_width : q_width}};
  for (size_t i = 1; i < (is_fused ? 1 : names.qkv.size()); ++i) {
    qkv.prefixes.push_back(concat(prefix, names.qkv[i]));
    qkv.outputs.push_back(kv_width);
  }
  qkv_ = add_linear(config, qkv, config.hidden_size, config.block.qkv_bias, group, parameters);
  output_ = add_linear(config,
                       {{concat(prefix, names.output)}, {config.hidden_size}},
                       q_width,
                       config.block.output_bias,
                       group,
                       parameters);
  const QkNorm qk_norm = config.block.qk_norm;
  if (qk_norm != QkNorm::kNone) {
    const bool is_whole = qk_norm == QkNorm::kWholeWidth;
    const int64_t q_norm_width = is_whole ? q_width : head_dim_,
                  k_norm_width = is_whole ? kv_width : head_dim_;
    q_norm_ = add_norm(config, concat(prefix, names.q_norm), q_norm_width, group, parameters);
    k_norm_ = add_norm(config, concat(prefix, names.k_norm), k_norm_width, group, parameters);
  }
  if (config.is_linear_layer(layer)) {
    feature_map_ = make_feature_map(config, prefix + "feature_map", group, parameters);
  }
}

Attention::Heads Attention::project(const Tensor& x_BTD,
                                    const RotaryEmbedding::Tables* rope) const {
  const int64_t all_heads = num_heads_ + 2 * num_kv_heads_;
  Tensor qkv_BTHd = qkv_(x_BTD).view({x_BTD.size(0), x_BTD.size(1), all_heads, head_dim_});
  if (has_qk_norm()) qkv_BTHd = normalise_queries_and_keys(qkv_BTHd);
  if (has_rope_)
    qkv_BTHd = rotate_heads(qkv_BTHd, num_heads_ + num_kv_heads_, rope->cosine_Td, rope->sine_Td);
  return split_heads(qkv_BTHd);
}

Tensor Attention::normalise_queries_and_keys(const Tensor& qkv_BTHd) const {
  const Heads heads = split_heads(qkv_BTHd);
  // The width of the weight says what is normalised: each head, or all of them as one vector.
  const auto normalised = [this](const Norm& norm, const Tensor& x_BTHd) {
    if (norm.weight.size(0) == head_dim_) return norm(x_BTHd);
    return norm(x_BTHd.flatten(2, 3)).view(x_BTHd.sizes());
  };
  return at::cat(
      {normalised(q_norm_, heads.q_BTHd), normalised(k_norm_, heads.k_BTHd), heads.v_BTHd}, 2);
}

Attention::Heads Attention::split_heads(const Tensor& qkv_BTHd) const {
  const std::vector<Tensor> parts =
      qkv_BTHd.split_with_sizes({num_heads_, num_kv_heads_, num_kv_heads_}, 2);
  return {parts[0], parts[1], parts[2], qkv_BTHd};
}

Tensor Attention::softmax_attention(const Heads& heads, AttentionState* state) const {
  const int64_t new_tokens = heads.q_BTHd.size(1);
  if (state != nullptr && state->length > 0 && new_tokens == 1 && heads.q_BTHd.is_cuda() &&
      has_captured_step() && !torch::GradMode::is_enabled()) {
    return cache_attention(heads, *state);
  }
  const Tensor q_BHTd = heads.q_BTHd.transpose(1, 2);
  Tensor k_BHTd = heads.k_BTHd.transpose(1, 2), v_BHTd = heads.v_BTHd.transpose(1, 2);
  std::optional<Tensor> mask;
  bool is_causal = true;
  if (state != nullptr) {
    append(*state, k_BHTd, v_BHTd);
    k_BHTd = state->keys_BHTd.narrow(2, 0, state->length);
    v_BHTd = state->values_BHTd.narrow(2, 0, state->length);
    if (state->length > new_tokens) {
      is_causal = false;
      if (new_tokens > 1) mask = offset_causal_mask(new_tokens, state->length, q_BHTd.device());
    }
  }
  const bool is_grouped = num_heads_ != num_kv_heads_;
  const Tensor o_BHTd = at::scaled_dot_product_attention(
      q_BHTd, k_BHTd, v_BHTd, mask, 0.0, is_causal, query_scale_, is_grouped);
  return o_BHTd.transpose(1, 2);
}

Tensor Attention::cache_attention(const Heads& heads, AttentionState& state) const {
  if (state.capacity() == state.length) state.reserve(2 * state.capacity());
  if (!state.tickets.defined()) {
    state.tickets = torch::zeros({heads.q_BTHd.size(0) * num_heads_},
                                 heads.q_BTHd.options().dtype(torch::kInt32));
  }
  ++state.length;
  return gpu::cache_attention_step({.q_BTHd = heads.q_BTHd,
                                    .k_BTHd = heads.k_BTHd,
                                    .v_BTHd = heads.v_BTHd,
                                    .keys_BHCd = state.keys_BHTd,
                                    .values_BHCd = state.values_BHTd,
                                    .length_1 = state.device_length,
                                    .tickets = state.tickets,
                                    .scale = query_scale_});
}

Tensor Attention::linear_attention(const Heads& heads, AttentionState* state) const {
  if (heads.q_BTHd.is_cuda()) {
    const std::optional<FeatureMap::Affine> map = feature_map_->affine();
    if (map.has_value()) return mapped_attention(heads, *map, state);
    const std::optional<FeatureMap::Affine> pair = feature_map_->softmax_pair();
    if (pair.has_value()) return hedgehog_attention(heads, *pair, state);
  }
  return feature_attention(feature_map_->query_features(heads.q_BTHd, query_scale_),
                           feature_map_->key_features(heads.k_BTHd),
                           heads.v_BTHd,
                           state);
}

// On a GPU the map is part of the attention kernel.
Tensor Attention::mapped_attention(const Heads& heads,
                                   const FeatureMap::Affine& map,
                                   AttentionState* state) const {
  if (state == nullptr) {
    return gpu::causal_linear_attention({.qkv_BTHd = heads.qkv_BTHd,
                                         .query_heads = num_heads_,
                                         .weight_MKd = map.weight_MKd,
                                         .bias_MK = map.bias_MK,
                                         .scale = query_scale_,
                                         .rule = feature_map_->denominator_rule()});
  }
  const gpu::MappedAttention inputs{.q_BTHd = heads.q_BTHd,
                                    .k_BTHd = heads.k_BTHd,
                                    .v_BTHd = heads.v_BTHd,
                                    .weight_MKd = map.weight_MKd,
                                    .bias_MK = map.bias_MK,
                                    .scale = query_scale_,
                                    .rule = feature_map_->denominator_rule()};
  state->length += heads.v_BTHd.size(1);
  if (state->linear.has_value() && heads.v_BTHd.size(1) == 1 && !torch::GradMode::is_enabled()) {
    return gpu::decode_step(inputs, *state->linear);
  }
  LinearAttentionOutput output =
      gpu::causal_linear_attention(inputs, state->linear.has_value() ? &*state->linear : nullptr);
  state->linear = output.state;
  return output.o_BTHV;
}

Tensor Attention::hedgehog_attention(const Heads& heads,
                                     const FeatureMap::Affine& map,
                                     AttentionState* state) const {
  if (state == nullptr) {
    return gpu::causal_hedgehog({.qkv_BTHd = heads.qkv_BTHd,
                                 .query_heads = num_heads_,
                                 .weight_MKd = map.weight_MKd,
                                 .bias_MK = map.bias_MK,
                                 .rule = feature_map_->denominator_rule()});
  }
  const auto [phi_q_BTHK, phi_k_BTHK] =
      gpu::hedgehog_features(heads.q_BTHd, heads.k_BTHd, map.weight_MKd, map.bias_MK);
  return feature_attention(phi_q_BTHK, phi_k_BTHK, heads.v_BTHd, state);
}

Tensor Attention::feature_attention(const Tensor& phi_q_BTHK,
                                    const Tensor& phi_k_BTHK,
                                    const Tensor& v_BTHd,
                                    AttentionState* state) const {
  if (state != nullptr) state->length += v_BTHd.size(1);
  if (state != nullptr && state->linear.has_value() && v_BTHd.is_cuda() && v_BTHd.size(1) == 1 &&
      !torch::GradMode::is_enabled()) {
    return gpu::decode_step(
        phi_q_BTHK, phi_k_BTHK, v_BTHd, *state->linear, feature_map_->denominator_rule());
  }
  const LinearAttentionState* initial =
      state != nullptr && state->linear.has_value() ? &*state->linear : nullptr;
  LinearAttentionOutput output = causal_linear_attention(
      phi_q_BTHK, phi_k_BTHK, v_BTHd, initial, feature_map_->denominator_rule());
  if (state != nullptr) state->linear = output.state;
  return output.o_BTHV;
}

void Attention::merge_feature_map() {
  // A GPU's kernel applies the map itself, in the same pass.
  if (feature_map_ == nullptr || has_rope_ || has_qk_norm() || qkv_.weight.is_cuda()) return;
  const std::optional<FeatureMap::Affine> affine = feature_map_->affine();
  if (!affine.has_value()) return;
  const torch::NoGradGuard no_grad;
  const int64_t maps = affine->weight_MKd.size(0);
  const std::array<int64_t, 3> rows = {
      num_heads_ * head_dim_, num_kv_heads_ * head_dim_, num_kv_heads_ * head_dim_};
  const Tensor weight_OD = qkv_.output_major();
  const std::vector<Tensor> weights = weight_OD.split_with_sizes(rows, 0);
  const std::vector<Tensor> biases =
      (qkv_.bias.defined() ? qkv_.bias : torch::zeros({weight_OD.size(0)}, weight_OD.options()))
          .split_with_sizes(rows, 0);
  // [heads of the result, K, D] and [heads, K]: head h is mapped by map h * M / heads (or shares
  // its key head).
  const auto merge = [&](const Tensor& weight,
                         const Tensor& bias,
                         int64_t heads,
                         double scale,
                         Tensor& merged_bias) {
    const int64_t results = std::max(heads, maps);
    const Tensor map = affine->weight_MKd.repeat_interleave(results / maps, 0);
    const Tensor projection =
        weight.reshape({heads, head_dim_, -1}).repeat_interleave(results / heads, 0);
    const Tensor offset = bias.reshape({heads, head_dim_, 1}).repeat_interleave(results / heads, 0);
    merged_bias = (scale * at::bmm(map, offset).squeeze(-1) +
                   affine->bias_MK.repeat_interleave(results / maps, 0))
                      .flatten();
    return (scale * at::bmm(map, projection)).flatten(0, 1);
  };
  Tensor q_bias, k_bias;
  const Tensor q_weight = merge(weights[0], biases[0], num_heads_, query_scale_, q_bias);
  const Tensor k_weight = merge(weights[1], biases[1], num_kv_heads_, 1.0, k_bias);
  merged_ = {
      torch::cat({q_weight, k_weight, weights[2]}), torch::cat({q_bias, k_bias, biases[2]}), false};
}

Tensor Attention::merged_attention(const Tensor& x_BTD, AttentionState* state) const {
  const int64_t batch = x_BTD.size(0), length = x_BTD.size(1);
  const int64_t features = feature_map_->feature_size(), maps = feature_map_->state_heads();
  const std::vector<Tensor> parts = merged_(x_BTD).split_with_sizes(
      {num_heads_ * features, maps * features, num_kv_heads_ * head_dim_}, -1);
  return feature_attention(
      feature_map_->activate(parts[0]).view({batch, length, num_heads_, features}),
      feature_map_->activate(parts[1]).view({batch, length, maps, features}),
      parts[2].unflatten(-1, {num_kv_heads_, head_dim_}),
      state);
}

Tensor Attention::forward(const Tensor& x_BTD,
                          const RotaryEmbedding::Tables* rope,
                          AttentionState* state) const {
  require(rope != nullptr || !has_rope_, "Attention: a layer with RoPE needs its tables");
  Tensor o_BTHd;
  if (merged_.weight.defined()) {
    require(!torch::GradMode::is_enabled(), "Attention: a merged layer has no gradients");
    o_BTHd = merged_attention(x_BTD, state);
  } else {
    const Heads heads = project(x_BTD, rope);
    o_BTHd =
        feature_map_ == nullptr ? softmax_attention(heads, state) : linear_attention(heads, state);
  }
  return join_heads(o_BTHd);
}

Tensor Attention::step(const Tensor& x_BD,
                       const Norm& norm,
                       const RotaryEmbedding::Tables* rope,
                       AttentionState& state) const {
  require(rope != nullptr || !has_rope_, "Attention: a layer with RoPE needs its tables");
  gpu::StepLinear projection{.x_NI = x_BD,
                             .weight_OI = qkv_.weight,
                             .bias = qkv_.bias,
                             .norm_weight = norm.weight,
                             .norm_bias = norm.bias,
                             .eps = norm.eps};
  if (has_rope_) {
    projection.cosine_Ph = rope->cosine_Td;
    projection.sine_Ph = rope->sine_Td;
    projection.position_1 = state.device_length;
    projection.rotated = (num_heads_ + num_kv_heads_) * head_dim_;
  }
  const Heads heads =
      split_heads(gpu::step_linear(projection)
                      .view({x_BD.size(0), 1, num_heads_ + 2 * num_kv_heads_, head_dim_}));
  const Tensor o_BTHd =
      feature_map_ == nullptr ? softmax_attention(heads, &state) : linear_attention(heads, &state);
  return gpu::step_linear({.x_NI = o_BTHd.reshape({x_BD.size(0), num_heads_ * head_dim_}),
                           .weight_OI = output_.weight,
                           .bias = output_.bias,
                           .residual_NO = x_BD});
}

AttentionState Attention::random_state(int64_t batch, int64_t length, int64_t capacity) const {
  AttentionState state;
  state.length = length;
  if (feature_map_ == nullptr) {
    const auto buffer = [&] {
      Tensor buffer_BHTd =
          torch::empty({batch, num_kv_heads_, capacity, head_dim_}, qkv_.weight.options());
      return buffer_BHTd.normal_();
    };
    state.keys_BHTd = buffer();
    state.values_BHTd = buffer();
  } else {
    state.linear = zero_state(batch,
                              feature_map_->state_heads(),
                              feature_map_->feature_size(),
                              head_dim_,
                              qkv_.weight.options().dtype(torch::kFloat32));
    state.linear->s_BHKV.normal_();
    state.linear->z_BHK.uniform_(1.0, 2.0);
  }
  return state;
}

bool Attention::has_captured_step() const {
  return feature_map_ != nullptr || gpu::has_cache_attention(head_dim_);
}

void Attention::make_output_major() {
  qkv_.make_output_major();
  output_.make_output_major();
}

int64_t Attention::most_step_rows() const {
  if (has_qk_norm()) return 0;
  return std::min(qkv_.most_step_rows(/*is_behind_norm=*/true),
                  output_.most_step_rows(/*is_behind_norm=*/false));
}

Tensor Attention::join_heads(const Tensor& o_BTHd) const {
  return output_(o_BTHd.flatten(2, 3));
}

Attention::Transfer Attention::forward_transfer(const Tensor& x_BTD,
                                                const RotaryEmbedding::Tables* rope,
                                                const Tensor& counts_BT) const {
  Heads heads;
  Tensor target_BTHd;
  Transfer result;
  {
    const torch::NoGradGuard no_grad;
    heads = project(x_BTD, rope);
    target_BTHd = softmax_attention(heads, nullptr);
    result.y_BTD = join_heads(target_BTHd);
  }
  if (feature_map_ != nullptr) {
    const Tensor o_BTHd = linear_attention(heads, nullptr);
    Tensor error_BTHd = (o_BTHd - target_BTHd).square();
    if (counts_BT.defined()) error_BTHd = error_BTHd * counts_BT.unsqueeze(2).unsqueeze(3);
    result.error_sum =
        error_BTHd.sum(torch::kFloat64) / static_cast<double>(num_heads_ * head_dim_);
  }
  return result;
}

}  // namespace t2r::model
