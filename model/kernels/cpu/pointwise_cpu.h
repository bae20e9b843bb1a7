#pragma once

#include <cstdint>

namespace t2r::model::kernels {

/// Rows of a root-mean-square normalisation: y = x r w with r = (mean(x^2) + eps)^-1/2, rows of
/// `width`.
template <class T>
struct RmsNormForward {
  const T* x;       ///< [rows, width]
  const T* weight;  ///< [width]
  T* y;             ///< [rows, width]
  T* inverse_rms;   ///< [rows]
  int64_t width;
  double eps;
};

template <class T>
struct RmsNormBackward {
  const T* x;
  const T* weight;
  const T* inverse_rms;
  const T* grad_y;
  T* grad_x;       ///< [rows, width]
  T* grad_weight;  ///< [width], added to: one buffer per caller
  int64_t width;
};

/// y = silu(gate) * up, elementwise.
template <class T>
struct SwiGlu {
  const T* gate;
  const T* up;
  const T* grad_y = nullptr;  ///< backward only
  T* y = nullptr;             ///< forward only
  T* grad_gate = nullptr;     ///< backward only
  T* grad_up = nullptr;       ///< backward only
};

/// Rotates the head vectors of rows of a [B, T, H, d] tensor: (x1, x2) -> (x1 c - x2 s, x2 c + x1
/// s), halves of d.
template <class T>
struct Rotate {
  const T* in;  ///< row 0 of this head group: vectors at in + h * stride_in
  T* out;
  const T* cosine;  ///< [d / 2] of this position
  const T* sine;    ///< [d / 2], negated for the inverse rotation
  int64_t heads;
  int64_t half;  ///< d / 2
  int64_t stride_in;
  int64_t stride_out;
};

/// One step of AdamW with decoupled decay on a slice of flat memory.
/// Source: Loshchilov & Hutter 2019, algorithm 2, as torch.optim.AdamW orders the operations.
struct AdamW {
  float* parameter;
  const float* gradient;
  float* first_moment;
  float* second_moment;
  float gradient_scale;  ///< 1 / normaliser times the clipping factor
  float learning_rate;
  float beta1, beta2, eps, weight_decay;
  float bias_correction1;       ///< 1 - beta1^step
  float bias_correction2_sqrt;  ///< sqrt(1 - beta2^step)
};

/// What the kernels of one instruction set offer; ranges are [begin, end) of rows or elements.
struct PointwiseKernels {
  void (*rms_norm_f32)(const RmsNormForward<float>&, int64_t begin, int64_t end);
  void (*rms_norm_f64)(const RmsNormForward<double>&, int64_t begin, int64_t end);
  void (*rms_norm_backward_f32)(const RmsNormBackward<float>&, int64_t begin, int64_t end);
  void (*rms_norm_backward_f64)(const RmsNormBackward<double>&, int64_t begin, int64_t end);
  void (*swiglu_f32)(const SwiGlu<float>&, int64_t begin, int64_t end);
  void (*swiglu_f64)(const SwiGlu<double>&, int64_t begin, int64_t end);
  void (*swiglu_backward_f32)(const SwiGlu<float>&, int64_t begin, int64_t end);
  void (*swiglu_backward_f64)(const SwiGlu<double>&, int64_t begin, int64_t end);
  void (*rotate_f32)(const Rotate<float>&);
  void (*rotate_f64)(const Rotate<double>&);

  /// Loss of one row of logits, -log softmax(logits)[target], in nats; logits become softmax -
  /// onehot(target).
  float (*cross_entropy_row)(float* logits, int64_t width, int64_t target);
  /// The same without the gradient: logits stay as they are.
  float (*cross_entropy_value)(const float* logits, int64_t width, int64_t target);
  void (*adamw)(const AdamW&, int64_t begin, int64_t end);
  /// Sum of squares in float64.
  double (*sum_of_squares)(const float* x, int64_t begin, int64_t end);
};

/// The kernels for the processor that runs: AVX-512, AVX2 or the baseline.
const PointwiseKernels& pointwise_kernels();

}  // namespace t2r::model::kernels
