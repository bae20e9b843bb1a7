#pragma once

#include <torch/types.h>

#include <memory>
#include <optional>

#include "model/attention/feature_map.h"
#include "model/attention/linear_attention.h"
#include "model/config.h"
#include "model/layers/linear.h"
#include "model/layers/norm.h"
#include "model/layers/rotary_embedding.h"

namespace t2r::model {

/// What one layer carries from token to token while generating: a key/value cache that grows
/// (softmax), or a state of constant size (linear).
struct AttentionState {
  torch::Tensor keys_BHTd, values_BHTd;  ///< buffers with room for more tokens than `length`
  int64_t length = 0;
  torch::Tensor device_length;  ///< on a GPU the same number there, int64 [1], of all layers
  torch::Tensor tickets;        ///< on a GPU: what gpu::cache_attention_step asks for
  std::optional<LinearAttentionState> linear;

  /// Bytes that hold information after `tokens` tokens: 2 H T d floats, or H (K V + K).
  int64_t num_bytes(int64_t tokens) const;

  /// Tokens that the buffers have room for; a linear layer's state has room for any number.
  int64_t capacity() const;

  /// Moves keys and values to larger buffers if there is no room for `tokens`.
  void reserve(int64_t tokens);
};

/// Causal self-attention of one layer: projections, norms of queries and keys (some families),
/// positions (RoPE, unless the layer has none), softmax or linear attention, output projection.
///
/// Legend: B batch, T tokens, D hidden size, H query heads, Hkv key/value heads, d head dimension.
class Attention {
 public:
  Attention(const DecoderConfig& config, int64_t layer, ParameterSet& parameters);

  /// x_BTD -> [B, T, D]. With a state, x follows what the state has seen, and the state moves on.
  /// @param rope  tables of the positions of x; a layer without RoPE leaves them out
  torch::Tensor forward(const torch::Tensor& x_BTD,
                        const RotaryEmbedding::Tables* rope,
                        AttentionState* state) const;

  /// x_BD + attention(norm(x_BD)) for one token of each sequence on a GPU, in four kernels; the
  /// state, which has seen a token, moves on. Nothing depends on where the host believes the
  /// sequences to be.
  /// @param rope  tables of all positions up to the capacity; a layer without RoPE leaves them out
  torch::Tensor step(const torch::Tensor& x_BD,
                     const Norm& norm,
                     const RotaryEmbedding::Tables* rope,
                     AttentionState& state) const;

  /// A state as `length` tokens of `batch` sequences leave it, of random numbers, with room for
  /// `capacity` tokens: to measure what a step costs.
  AttentionState random_state(int64_t batch, int64_t length, int64_t capacity) const;

  /// Whether a captured step serves every length (gpu_ops.h).
  bool has_captured_step() const;

  /// Brings the weights into the layout that step() reads, for a model that only generates.
  void make_output_major();

  /// The most rows that step() takes; 0: none, as with norms of queries and keys, which its kernels
  /// do not have.
  int64_t most_step_rows() const;

  /// Softmax attention of the pretrained model, and how far this layer's linear attention is from
  /// it: the squared error of the heads' outputs, averaged over H d and summed over tokens.
  /// Gradients reach the feature map alone.
  /// @param counts_BT  bool: which tokens the sum has; undefined: all
  struct Transfer {
    torch::Tensor y_BTD;
    torch::Tensor error_sum;  ///< scalar, undefined for a softmax layer
  };
  Transfer forward_transfer(const torch::Tensor& x_BTD,
                            const RotaryEmbedding::Tables* rope,
                            const torch::Tensor& counts_BT) const;

  /// Merges the feature map into the projections: phi(q) = relu(scale W Wq x + ...), so that
  /// generation never forms q and k. Exact where nothing (RoPE, norms) stands between, elsewhere a
  /// no-op;
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
  torch::Tensor normalise_queries_and_keys(const torch::Tensor& qkv_BTHd) const;
  Heads split_heads(const torch::Tensor& qkv_BTHd) const;
  torch::Tensor join_heads(const torch::Tensor& o_BTHd) const;
  torch::Tensor softmax_attention(const Heads& heads, AttentionState* state) const;
  torch::Tensor cache_attention(const Heads& heads, AttentionState& state) const;
  torch::Tensor linear_attention(const Heads& heads, AttentionState* state) const;
  torch::Tensor hedgehog_attention(const Heads& heads,
                                   const FeatureMap::Affine& map,
                                   AttentionState* state) const;
  torch::Tensor mapped_attention(const Heads& heads,
                                 const FeatureMap::Affine& map,
                                 AttentionState* state) const;
  torch::Tensor feature_attention(const torch::Tensor& phi_q_BTHK,
                                  const torch::Tensor& phi_k_BTHK,
                                  const torch::Tensor& v_BTHd,
                                  AttentionState* state) const;
  torch::Tensor merged_attention(const torch::Tensor& x_BTD, AttentionState* state) const;

  bool has_qk_norm() const { return q_norm_.weight.defined(); }

  int64_t num_heads_, num_kv_heads_, head_dim_;
  double query_scale_;
  bool has_rope_;
  Linear qkv_;
  Norm q_norm_, k_norm_;  ///< of a head's width or of all heads'; undefined in most families
  Linear output_;
  std::unique_ptr<FeatureMap> feature_map_;  ///< nullptr: softmax
  Linear merged_;                            ///< D -> H K + M K + Hkv d
};

}  // namespace t2r::model
