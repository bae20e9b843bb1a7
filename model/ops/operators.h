#pragma once

#include "model/ops/cache_attention_op.h"
#include "model/ops/causal_op.h"
#include "model/ops/decode_op.h"
#include "model/ops/draw_token_op.h"
#include "model/ops/embedding_op.h"
#include "model/ops/hedgehog_op.h"
#include "model/ops/linear_op.h"
#include "model/ops/loss_op.h"
#include "model/ops/mlp_op.h"
#include "model/ops/norm_op.h"
#include "model/ops/pointwise_op.h"
#include "model/ops/step_linear_op.h"

namespace t2r::ops {

/// What the model calls on a GPU, as pointers: the model links no CUDA, so the program that does
/// hands it this table (model/gpu_ops.h). The headers above need LibTorch alone.
struct Operators {
  decltype(&ops::add_norm) add_norm;
  decltype(&ops::cache_attention_step) cache_attention_step;
  decltype(&ops::causal) causal;
  decltype(&ops::causal_hedgehog) causal_hedgehog;
  decltype(&ops::causal_qkv) causal_qkv;
  decltype(&ops::decode_step) decode_step;
  decltype(&ops::draw_token) draw_token;
  decltype(&ops::embedding) embedding;
  decltype(&ops::hedgehog_features) hedgehog_features;
  decltype(&ops::linear) linear;
  decltype(&ops::linear_cross_entropy_sum) linear_cross_entropy_sum;
  decltype(&ops::linear_cross_entropy_values) linear_cross_entropy_values;
  decltype(&ops::linear_distillation_sum) linear_distillation_sum;
  decltype(&ops::mlp_gelu) mlp_gelu;
  decltype(&ops::most_step_rows) most_step_rows;
  decltype(&ops::norm) norm;
  decltype(&ops::rotate_heads) rotate_heads;
  decltype(&ops::step_linear) step_linear;
  decltype(&ops::swiglu) swiglu;
};

/// All of them, from libt2r_ops.
const Operators& operators();

}  // namespace t2r::ops
