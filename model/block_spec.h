#pragma once

#include <cstdint>
#include <vector>

namespace t2r::model {

enum class Activation { kGeluTanh, kGeluErf, kRelu, kSilu };
enum class NormKind { kRms, kLayer };

/// Of a branch f: x + f(norm(x)), or x + norm(f(x)).
enum class NormPlace { kInFront, kBehind };

/// Norms of queries and keys, in front of RoPE: of each head, or of all heads as one vector.
enum class QkNorm { kNone, kPerHead, kWholeWidth };

/// How tokens learn where they are: a table of vectors that are added, or rotated queries and keys.
enum class Positions { kLearned, kRope };

/// What the blocks of one family of decoders compute, and those of another do not. The defaults are
/// Llama's.
struct BlockSpec {
  NormKind norm = NormKind::kRms;
  NormPlace norm_place = NormPlace::kInFront;
  QkNorm qk_norm = QkNorm::kNone;
  Positions positions = Positions::kRope;
  std::vector<int64_t> layers_without_rope = {};  ///< ascending; they see no positions
  bool has_gated_mlp = true;  ///< down(act(gate x) * up x), else down(act(up x))
  Activation activation = Activation::kSilu;
  bool qkv_bias = false;
  bool output_bias = false;  ///< of attention's output projection
  bool mlp_bias = false;
  bool scale_attention = true;           ///< divide scores by sqrt(head_dim)
  bool scale_by_inverse_layer = false;   ///< and by layer + 1
  bool has_input_major_weights = false;  ///< [in, out], as Conv1D has them, else [out, in]
  bool has_free_heads = true;  ///< else as many key/value heads, and heads as wide as the model

  bool operator==(const BlockSpec&) const = default;
};

}  // namespace t2r::model
