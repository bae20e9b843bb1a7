#include "model/attention/linear_attention_naive.h"

#include <vector>

namespace t2r::model {
namespace {

using torch::Tensor;

Tensor repeat_heads(const Tensor& x_BTHD, int64_t heads) {
  return x_BTHD.repeat_interleave(heads / x_BTHD.size(2), 2);
}

LinearAttentionState start_state(const Tensor& phi_k_BTHK,
                                 const Tensor& v_BTHV,
                                 const LinearAttentionState* initial) {
  if (initial != nullptr) return *initial;
  return zero_state(
      phi_k_BTHK.size(0), phi_k_BTHK.size(2), phi_k_BTHK.size(3), v_BTHV.size(3), v_BTHV.options());
}

}  // namespace

LinearAttentionOutput causal_linear_attention_parallel(const Tensor& phi_q_BTHK,
                                                       const Tensor& phi_k_BTHK,
                                                       const Tensor& v_BTHV,
                                                       const LinearAttentionState* initial,
                                                       const DenominatorRule& rule) {
  const LinearAttentionState start = start_state(phi_k_BTHK, v_BTHV, initial);
  const int64_t query_heads = phi_q_BTHK.size(2), state_heads = phi_k_BTHK.size(2);
  const Tensor v = repeat_heads(v_BTHV, state_heads);
  const Tensor s = start.s_BHKV.repeat_interleave(query_heads / state_heads, 1);
  const Tensor z = start.z_BHK.repeat_interleave(query_heads / state_heads, 1);

  const Tensor scores_BHTS =
      torch::einsum("bthk,bshk->bhts", {phi_q_BTHK, repeat_heads(phi_k_BTHK, query_heads)}).tril();
  const Tensor numerator =
      torch::einsum("bhts,bshv->bthv", {scores_BHTS, repeat_heads(v_BTHV, query_heads)}) +
      torch::einsum("bthk,bhkv->bthv", {phi_q_BTHK, s});
  const Tensor raw =
      scores_BHTS.sum(-1).transpose(1, 2) + torch::einsum("bthk,bhk->bth", {phi_q_BTHK, z});
  const Tensor o = numerator / (raw + rule.added).clamp_min(rule.floor).unsqueeze(-1);
  return {o,
          {start.s_BHKV + torch::einsum("bthk,bthv->bhkv", {phi_k_BTHK, v}),
           start.z_BHK + phi_k_BTHK.sum(1)}};
}

LinearAttentionOutput causal_linear_attention_recurrent(const Tensor& phi_q_BTHK,
                                                        const Tensor& phi_k_BTHK,
                                                        const Tensor& v_BTHV,
                                                        const LinearAttentionState* initial,
                                                        const DenominatorRule& rule) {
  const LinearAttentionState start = start_state(phi_k_BTHK, v_BTHV, initial);
  const int64_t repeats = phi_q_BTHK.size(2) / phi_k_BTHK.size(2);
  const Tensor v = repeat_heads(v_BTHV, phi_k_BTHK.size(2));
  Tensor s = start.s_BHKV, z = start.z_BHK;
  std::vector<Tensor> outputs;
  for (int64_t t = 0; t < phi_q_BTHK.size(1); ++t) {
    const Tensor phi_q = phi_q_BTHK.select(1, t), phi_k = phi_k_BTHK.select(1, t);
    s = s + phi_k.unsqueeze(-1) * v.select(1, t).unsqueeze(-2);
    z = z + phi_k;
    const Tensor numerator =
        torch::einsum("bhk,bhkv->bhv", {phi_q, s.repeat_interleave(repeats, 1)});
    const Tensor raw = (phi_q * z.repeat_interleave(repeats, 1)).sum(-1, true);
    outputs.push_back(numerator / (raw + rule.added).clamp_min(rule.floor));
  }
  return {torch::stack(outputs, 1), {s, z}};
}

}  // namespace t2r::model
