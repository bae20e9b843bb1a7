#pragma once

#include <cstdint>

namespace t2r::model::kernels {

/// A [B, T, H, D] tensor: strides in elements, the last dimension contiguous.
template <class T>
struct View {
  T* data = nullptr;
  int64_t stride_B = 0;
  int64_t stride_T = 0;
  int64_t stride_H = 0;

  T* row(int64_t b, int64_t t, int64_t h) const {
    return data + b * stride_B + t * stride_T + h * stride_H;
  }
};

/// Sizes of one causal linear attention. query_heads is a multiple of state_heads (heads of
/// phi(k)), which is a multiple of value_heads: grouped queries, with one feature map per key/value
/// head or per query head.
struct CausalShape {
  int64_t batch = 0;
  int64_t length = 0;
  int64_t query_heads = 0;
  int64_t state_heads = 0;
  int64_t value_heads = 0;
  int64_t feature_size = 0;
  int64_t value_size = 0;
};

/// Denominator = max(phi(q) . z + added, floor).
struct DenominatorRule {
  double floor = 1e-2;
  double added = 0.0;
};

/// Forward of the chunked form; T is float or double, as is the state.
template <class T>
struct CausalForward {
  CausalShape shape;
  DenominatorRule rule;
  View<const T> phi_q, phi_k, v;
  View<T> o;
  T* denominator = nullptr;  ///< [B, T, Hq], before `added` and `floor`; may be null
  T* state_s = nullptr;      ///< [B, Hs, K, V], in: initial, out: final
  T* state_z = nullptr;      ///< [B, Hs, K], likewise
};

/// Backward of the chunked form. The states are the *initial* ones of the forward.
template <class T>
struct CausalBackward {
  CausalShape shape;
  DenominatorRule rule;
  View<const T> phi_q, phi_k, v, o, grad_o;
  const T* denominator = nullptr;  ///< as the forward wrote it
  const T* state_s = nullptr;      ///< [B, Hs, K, V] initial
  const T* state_z = nullptr;      ///< [B, Hs, K]
  View<T> grad_phi_q, grad_phi_k, grad_v;
  T* grad_state_s = nullptr;  ///< [B, Hs, K, V], in: of the final state, out: of the initial one
  T* grad_state_z = nullptr;  ///< [B, Hs, K], likewise
};

/// Both compute the work item of one batch row and value head: 0 <= item < batch * value_heads.
/// Items touch disjoint outputs, so they may run on any thread in any order; the result does not
/// depend on the number of threads.
template <class T>
void causal_forward(const CausalForward<T>& args, int64_t item);
template <class T>
void causal_backward(const CausalBackward<T>& args, int64_t item);

template <>
void causal_forward<float>(const CausalForward<float>& args, int64_t item);
template <>
void causal_forward<double>(const CausalForward<double>& args, int64_t item);
template <>
void causal_backward<float>(const CausalBackward<float>& args, int64_t item);
template <>
void causal_backward<double>(const CausalBackward<double>& args, int64_t item);

}  // namespace t2r::model::kernels
