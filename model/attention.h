#pragma once

#include <torch/types.h>

#include <memory>
#include <optional>

#include "model/config.h"
#include "model/feature_map.h"
#include "model/layers.h"
#include "model/linear_attention.h"
#include "model/rotary_embedding.h"

namespace t2r::model {

/// What one layer carries from token to token while generating: a key/value cache that grows
/// (softmax), or a state of constant size (linear).
struct AttentionState {
  torch::Tensor keys_BHTd, values_BHTd;  ///< buffers with room for more tokens than `length`
  int64_t length = 0;
  std::optional<LinearAttentionState> linear;

  /// Bytes that hold information: 2 H T d floats, or H (K V + K).
  int64_t num_bytes() const;
};

/// Causal self-attention of one layer: projections, positions, softmax or linear attention, output
/// projection.
///
/// Legend: B batch, T tokens, D hidden size, H query heads, Hkv key/value heads, d head dimension.
class Attention {
 public:
  Attention(const DecoderConfig& config, int64_t layer, ParameterSet& parameters);

  /// x_BTD -> [B, T, D]. With a state, x follows what the state has seen, and the state moves on.
  /// @param rope  tables of the positions of x; nullptr for families without RoPE
  torch::Tensor forward(const torch::Tensor& x_BTD,
                        const RotaryEmbedding::Tables* rope,
                        AttentionState* state) const;

  /// Softmax attention of the pretrained model, and how far this layer's linear attention is from
  /// it: the squared error of the heads' outputs, averaged over H d and summed over tokens.
  /// Gradients reach the feature map alone.
  struct Transfer {
    torch::Tensor y_BTD;
    torch::Tensor error_sum;  ///< scalar, undefined for a softmax layer
  };
  Transfer forward_transfer(const torch::Tensor& x_BTD, const RotaryEmbedding::Tables* rope) const;

  /// Merges the feature map into the projections: phi(q) = relu(scale W Wq x + ...), so that
  /// generation never forms q and k. Exact where nothing (RoPE) stands between, elsewhere a no-op;
  /// without gradients, and stale once a parameter changes. Source: Kasai et al. 2021, section 2.2.
  void merge_feature_map();

  const Linear& output() const { return output_; }
  FeatureMap* feature_map() const { return feature_map_.get(); }

 private:
  struct Heads {
    torch::Tensor q_BTHd, k_BTHd, v_BTHd;
    torch::Tensor qkv_BTHd;  ///< all three, side by side
  };
  Heads project(const torch::Tensor& x_BTD, const RotaryEmbedding::Tables* rope) const;
  torch::Tensor join_heads(const torch::Tensor& o_BTHd) const;
  torch::Tensor softmax_attention(const Heads& heads, AttentionState* state) const;
  torch::Tensor linear_attention(const Heads& heads, AttentionState* state) const;
  torch::Tensor mapped_attention(const Heads& heads,
                                 const FeatureMap::Affine& map,
                                 AttentionState* state) const;
  torch::Tensor feature_attention(const torch::Tensor& phi_q_BTHK,
                                  const torch::Tensor& phi_k_BTHK,
                                  const torch::Tensor& v_BTHd,
                                  AttentionState* state) const;
  torch::Tensor merged_attention(const torch::Tensor& x_BTD, AttentionState* state) const;

  int64_t num_heads_, num_kv_heads_, head_dim_;
  double query_scale_;
  bool has_rope_;
  Linear qkv_;
  Linear output_;
  std::unique_ptr<FeatureMap> feature_map_;  ///< nullptr: softmax
  Linear merged_;                            ///< D -> H K + M K + Hkv d
};

}  // namespace t2r::model
