#pragma once

#include <array>
#include <cstdint>
#include <string>
#include <string_view>

#include "base/error.h"

namespace t2r::model {

/// What the files of a family call its tensors. The defaults are Llama's; an empty name is a tensor
/// that the family does not have.
struct TensorNames {
  std::string_view model = "model.";  ///< in front of all names but the head's
  std::string_view token_embedding = "embed_tokens";
  std::string_view position_embedding = "";
  std::string_view blocks = "layers";
  std::string_view final_norm = "norm";

  std::string_view attention_norm = "input_layernorm";
  std::string_view attention = "self_attn.";
  std::array<std::string_view, 3> qkv = {"q_proj", "k_proj", "v_proj"};  ///< or one, fused
  std::string_view q_norm = "q_norm";
  std::string_view k_norm = "k_norm";
  std::string_view output = "o_proj";
  std::string_view mlp_norm = "post_attention_layernorm";
  std::string_view mlp = "mlp.";
  std::array<std::string_view, 2> up = {"gate_proj", "up_proj"};  ///< or one, without a gate
  std::string_view down = "down_proj";

  bool operator==(const TensorNames&) const = default;

  /// "model.embed_tokens.weight"
  std::string token_table() const { return concat(model, token_embedding, ".weight"); }
  std::string position_table() const { return concat(model, position_embedding, ".weight"); }

  /// What the names of a block begin with, e.g. "model.layers.3."
  std::string block(int64_t layer) const { return concat(model, blocks, ".", layer, "."); }
};

/// What its config.json calls sizes. The defaults are Llama's.
struct FieldNames {
  std::string hidden_size = "hidden_size";
  std::string num_layers = "num_hidden_layers";
  std::string num_heads = "num_attention_heads";
  std::string intermediate_size = "intermediate_size";
  std::string max_positions = "max_position_embeddings";
  std::string norm_eps = "rms_norm_eps";

  bool operator==(const FieldNames&) const = default;
};

}  // namespace t2r::model
