#include "model/attention.h"

#include <algorithm>

#include "base/error.h"
#include "model/fused_ops.h"
#include "model/gpu_ops.h"

namespace t2r::model {
namespace {

using torch::Tensor;

// Appends new keys or values to a buffer that doubles when it is full.
void append(Tensor& buffer_BHTd, int64_t length, const Tensor& rows_BHTd) {
  const int64_t wanted = length + rows_BHTd.size(2);
  if (!buffer_BHTd.defined() || buffer_BHTd.size(2) < wanted) {
    const int64_t capacity =
        std::max<int64_t>(wanted, buffer_BHTd.defined() ? 2 * buffer_BHTd.size(2) : 64);
    Tensor grown = torch::zeros({rows_BHTd.size(0), rows_BHTd.size(1), capacity, rows_BHTd.size(3)},
                                rows_BHTd.options());
    if (length > 0) grown.narrow(2, 0, length).copy_(buffer_BHTd.narrow(2, 0, length));
    buffer_BHTd = grown;
  }
  buffer_BHTd.narrow(2, length, rows_BHTd.size(2)).copy_(rows_BHTd);
}

// Row i may look at every cached token and at new tokens up to itself.
Tensor offset_causal_mask(int64_t new_tokens, int64_t all_tokens, const torch::Device& device) {
  return torch::ones({new_tokens, all_tokens}, torch::TensorOptions(device).dtype(torch::kBool))
      .tril(all_tokens - new_tokens);
}

}  // namespace

int64_t AttentionState::num_bytes() const {
  if (linear.has_value()) {
    return (linear->s_BHKV.numel() + linear->z_BHK.numel()) * linear->s_BHKV.element_size();
  }
  if (!keys_BHTd.defined()) return 0;
  return 2 * keys_BHTd.size(0) * keys_BHTd.size(1) * length * keys_BHTd.size(3) *
         keys_BHTd.element_size();
}

Attention::Attention(const DecoderConfig& config, int64_t layer, ParameterSet& parameters)
    : num_heads_(config.num_heads),
      num_kv_heads_(config.num_kv_heads),
      head_dim_(config.head_dim),
      query_scale_(config.query_scale(layer)),
      has_rope_(config.family == Family::kLlama) {
  const int64_t group = layer + 1, q_width = num_heads_ * head_dim_,
                kv_width = num_kv_heads_ * head_dim_;
  std::string prefix = block_prefix(config, layer);
  if (config.family == Family::kGpt2) {
    prefix += ".attn.";
    qkv_ = add_linear(
        config, {{prefix + "c_attn"}, {3 * q_width}}, config.hidden_size, true, group, parameters);
    output_ = add_linear(
        config, {{prefix + "c_proj"}, {config.hidden_size}}, q_width, true, group, parameters);
  } else {
    prefix += ".self_attn.";
    qkv_ = add_linear(
        config,
        {{prefix + "q_proj", prefix + "k_proj", prefix + "v_proj"}, {q_width, kv_width, kv_width}},
        config.hidden_size,
        config.attention_bias,
        group,
        parameters);
    output_ = add_linear(config,
                         {{prefix + "o_proj"}, {config.hidden_size}},
                         q_width,
                         config.attention_bias,
                         group,
                         parameters);
  }
  if (config.is_linear_layer(layer)) {
    feature_map_ = make_feature_map(config, prefix + "feature_map", group, parameters);
  }
}

Attention::Heads Attention::project(const Tensor& x_BTD,
                                    const RotaryEmbedding::Tables* rope) const {
  const int64_t all_heads = num_heads_ + 2 * num_kv_heads_;
  Tensor qkv_BTHd = qkv_(x_BTD).view({x_BTD.size(0), x_BTD.size(1), all_heads, head_dim_});
  if (rope != nullptr)
    qkv_BTHd = rotate_heads(qkv_BTHd, num_heads_ + num_kv_heads_, rope->cosine_Td, rope->sine_Td);
  const std::vector<Tensor> parts =
      qkv_BTHd.split_with_sizes({num_heads_, num_kv_heads_, num_kv_heads_}, 2);
  return {parts[0], parts[1], parts[2], qkv_BTHd};
}

Tensor Attention::softmax_attention(const Heads& heads, AttentionState* state) const {
  const Tensor q_BHTd = heads.q_BTHd.transpose(1, 2);
  Tensor k_BHTd = heads.k_BTHd.transpose(1, 2), v_BHTd = heads.v_BTHd.transpose(1, 2);
  const int64_t new_tokens = q_BHTd.size(2);
  std::optional<Tensor> mask;
  bool is_causal = true;
  if (state != nullptr) {
    append(state->keys_BHTd, state->length, k_BHTd);
    append(state->values_BHTd, state->length, v_BHTd);
    state->length += new_tokens;
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

Tensor Attention::linear_attention(const Heads& heads, AttentionState* state) const {
  if (heads.q_BTHd.is_cuda()) {
    const std::optional<FeatureMap::Affine> map = feature_map_->affine();
    if (map.has_value()) return mapped_attention(heads, *map, state);
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

Tensor Attention::feature_attention(const Tensor& phi_q_BTHK,
                                    const Tensor& phi_k_BTHK,
                                    const Tensor& v_BTHd,
                                    AttentionState* state) const {
  const LinearAttentionState* initial =
      state != nullptr && state->linear.has_value() ? &*state->linear : nullptr;
  LinearAttentionOutput output = causal_linear_attention(
      phi_q_BTHK, phi_k_BTHK, v_BTHd, initial, feature_map_->denominator_rule());
  if (state != nullptr) {
    state->linear = output.state;
    state->length += v_BTHd.size(1);
  }
  return output.o_BTHV;
}

void Attention::merge_feature_map() {
  // A GPU's kernel applies the map itself, in the same pass.
  if (feature_map_ == nullptr || has_rope_ || qkv_.weight.is_cuda()) return;
  const std::optional<FeatureMap::Affine> affine = feature_map_->affine();
  if (!affine.has_value()) return;
  const torch::NoGradGuard no_grad;
  const int64_t maps = affine->weight_MKd.size(0);
  const std::vector<Tensor> weights = qkv_.output_major().split_with_sizes(
      {num_heads_ * head_dim_, num_kv_heads_ * head_dim_, num_kv_heads_ * head_dim_}, 0);
  const std::vector<Tensor> biases = qkv_.bias.split_with_sizes(
      {num_heads_ * head_dim_, num_kv_heads_ * head_dim_, num_kv_heads_ * head_dim_}, 0);
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
  require((rope != nullptr) == has_rope_,
          "Attention: RoPE tables are given exactly to families with RoPE");
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

Tensor Attention::join_heads(const Tensor& o_BTHd) const {
  return output_(o_BTHd.flatten(2, 3));
}

Attention::Transfer Attention::forward_transfer(const Tensor& x_BTD,
                                                const RotaryEmbedding::Tables* rope) const {
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
    result.error_sum = (o_BTHd - target_BTHd).square().sum(torch::kFloat64) /
                       static_cast<double>(num_heads_ * head_dim_);
  }
  return result;
}

}  // namespace t2r::model
