#include "model/ops/operators.h"

namespace t2r::ops {

const Operators& operators() {
  static const Operators all{
      .add_norm = &ops::add_norm,
      .cache_attention_step = &ops::cache_attention_step,
      .causal = &ops::causal,
      .causal_hedgehog = &ops::causal_hedgehog,
      .causal_qkv = &ops::causal_qkv,
      .decode_step = &ops::decode_step,
      .draw_token = &ops::draw_token,
      .embedding = &ops::embedding,
      .hedgehog_features = &ops::hedgehog_features,
      .linear = &ops::linear,
      .linear_cross_entropy_sum = &ops::linear_cross_entropy_sum,
      .linear_cross_entropy_values = &ops::linear_cross_entropy_values,
      .linear_distillation_sum = &ops::linear_distillation_sum,
      .mlp_gelu = &ops::mlp_gelu,
      .most_step_rows = &ops::most_step_rows,
      .norm = &ops::norm,
      .rotate_heads = &ops::rotate_heads,
      .step_linear = &ops::step_linear,
      .swiglu = &ops::swiglu,
  };
  return all;
}

}  // namespace t2r::ops
