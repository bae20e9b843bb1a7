// Elementwise and row-wise kernels for one instruction set; compiled once per set by cpu_<isa>.cpp.

#include <algorithm>
#include <cmath>

#include "model/kernels/cpu/dispatch.h"
#include "model/kernels/cpu/tile_matmul.h"

namespace t2r::model::kernels::T2R_CPU_ISA {
namespace {

template <class T>
T add_lanes(Vector<T> lanes) {
  T total = 0;
  for (int64_t i = 0; i < kLanes<T>; ++i) total += lanes[i];
  return total;
}

// e^x to 2 ulp for x in [-87, 88], clamped outside. Source: Cephes expf (Moshier): x = n ln 2 + r,
// degree-5 polynomial.
inline Vector<float> exponential(Vector<float> x) {
  typedef int32_t Ints __attribute__((vector_size(kVectorBytes)));
  const Vector<float> low = Vector<float>{} - 87.0f, high = Vector<float>{} + 88.0f;
  x = x < low ? low : x;
  x = x > high ? high : x;
  const Vector<float> scaled = x * 1.44269504088896341f;
  const Ints n = __builtin_convertvector(
      scaled + (scaled < 0.0f ? Vector<float>{} - 0.5f : Vector<float>{} + 0.5f), Ints);
  const Vector<float> whole = __builtin_convertvector(n, Vector<float>);
  const Vector<float> r = (x - whole * 0.693359375f) + whole * 2.12194440e-4f;
  Vector<float> p = r * 1.9875691500e-4f + 1.3981999507e-3f;
  p = p * r + 8.3334519073e-3f;
  p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f;
  p = p * r + 5.0000001201e-1f;
  p = p * r * r + r + 1.0f;
  const Ints exponent = (n + 127) << 23;
  return p * reinterpret_cast<const Vector<float>&>(exponent);
}

inline Vector<double> exponential(Vector<double> x) {
  for (int64_t i = 0; i < kLanes<double>; ++i) x[i] = std::exp(x[i]);
  return x;
}

// The last, incomplete vector of a range.
template <class T>
Vector<T> load_tail(const T* x, int64_t count) {
  Vector<T> lanes{};
  for (int64_t i = 0; i < count; ++i) lanes[i] = x[i];
  return lanes;
}

template <class T>
void store_tail(Vector<T> lanes, T* x, int64_t count) {
  for (int64_t i = 0; i < count; ++i) x[i] = lanes[i];
}

template <class T>
void rms_norm(const RmsNormForward<T>& args, int64_t begin, int64_t end) {
  for (int64_t row = begin; row < end; ++row) {
    const T* x = args.x + row * args.width;
    T* y = args.y + row * args.width;
    Vector<T> squares{};
    int64_t j = 0;
    for (; j + kLanes<T> <= args.width; j += kLanes<T>) squares += load(x + j) * load(x + j);
    T total = add_lanes<T>(squares);
    for (; j < args.width; ++j) total += x[j] * x[j];
    const T scale = T(1) / std::sqrt(total / static_cast<T>(args.width) + static_cast<T>(args.eps));
    args.inverse_rms[row] = scale;
    for (j = 0; j < args.width; ++j) y[j] = x[j] * scale * args.weight[j];
  }
}

template <class T>
void rms_norm_backward(const RmsNormBackward<T>& args, int64_t begin, int64_t end) {
  for (int64_t row = begin; row < end; ++row) {
    const T* x = args.x + row * args.width;
    const T* grad_y = args.grad_y + row * args.width;
    T* grad_x = args.grad_x + row * args.width;
    const T scale = args.inverse_rms[row];
    Vector<T> products{};
    int64_t j = 0;
    for (; j + kLanes<T> <= args.width; j += kLanes<T>) {
      products += load(grad_y + j) * load(args.weight + j) * load(x + j);
    }
    T projection = add_lanes<T>(products);
    for (; j < args.width; ++j) projection += grad_y[j] * args.weight[j] * x[j];
    projection *= scale * scale / static_cast<T>(args.width);
    for (j = 0; j < args.width; ++j) {
      grad_x[j] = scale * (grad_y[j] * args.weight[j] - x[j] * projection);
      args.grad_weight[j] += grad_y[j] * x[j] * scale;
    }
  }
}

template <class T>
Vector<T> sigmoid(Vector<T> x) {
  return T(1) / (T(1) + exponential(-x));
}

template <class T>
void swiglu(const SwiGlu<T>& args, int64_t begin, int64_t end) {
  int64_t j = begin;
  for (; j + kLanes<T> <= end; j += kLanes<T>) {
    const Vector<T> gate = load(args.gate + j);
    store<T>(gate * sigmoid<T>(gate) * load(args.up + j), args.y + j);
  }
  const Vector<T> gate = load_tail(args.gate + j, end - j);
  store_tail<T>(gate * sigmoid<T>(gate) * load_tail(args.up + j, end - j), args.y + j, end - j);
}

template <class T>
void swiglu_backward(const SwiGlu<T>& args, int64_t begin, int64_t end) {
  const auto gradients =
      [](Vector<T> gate, Vector<T> up, Vector<T> grad_y, Vector<T>& grad_gate, Vector<T>& grad_up) {
        const Vector<T> s = sigmoid<T>(gate);
        grad_up = grad_y * gate * s;
        grad_gate = grad_y * up * s * (T(1) + gate * (T(1) - s));
      };
  Vector<T> grad_gate, grad_up;
  int64_t j = begin;
  for (; j + kLanes<T> <= end; j += kLanes<T>) {
    gradients(load(args.gate + j), load(args.up + j), load(args.grad_y + j), grad_gate, grad_up);
    store<T>(grad_gate, args.grad_gate + j);
    store<T>(grad_up, args.grad_up + j);
  }
  const int64_t tail = end - j;
  gradients(load_tail(args.gate + j, tail),
            load_tail(args.up + j, tail),
            load_tail(args.grad_y + j, tail),
            grad_gate,
            grad_up);
  store_tail<T>(grad_gate, args.grad_gate + j, tail);
  store_tail<T>(grad_up, args.grad_up + j, tail);
}

template <class T>
void rotate(const Rotate<T>& args) {
  for (int64_t h = 0; h < args.heads; ++h) {
    const T* in = args.in + h * args.stride_in;
    T* out = args.out + h * args.stride_out;
    for (int64_t j = 0; j < args.half; ++j) {
      const T x1 = in[j], x2 = in[j + args.half];
      out[j] = x1 * args.cosine[j] - x2 * args.sine[j];
      out[j + args.half] = x2 * args.cosine[j] + x1 * args.sine[j];
    }
  }
}

struct SoftmaxSums {
  float maximum;
  float sum;  // of exp(logit - maximum)
};

// With `keep`, exp(logit - maximum) replaces the logits.
template <bool keep, class Row>
SoftmaxSums softmax_sums(Row* logits, int64_t width) {
  float maximum = -INFINITY;
  for (int64_t j = 0; j < width; ++j) maximum = std::max(maximum, logits[j]);
  Vector<float> sums{};
  int64_t j = 0;
  for (; j + kLanes<float> <= width; j += kLanes<float>) {
    const Vector<float> value = exponential(load(logits + j) - maximum);
    if constexpr (keep) store<float>(value, logits + j);
    sums += value;
  }
  float sum = add_lanes<float>(sums);
  const Vector<float> tail = exponential(load_tail<float>(logits + j, width - j) - maximum);
  for (int64_t i = 0; i < width - j; ++i) sum += tail[i];
  if constexpr (keep) store_tail<float>(tail, logits + j, width - j);
  return {maximum, sum};
}

float cross_entropy_row(float* logits, int64_t width, int64_t target) {
  const float logit = logits[target];
  const SoftmaxSums sums = softmax_sums<true>(logits, width);
  const float scale = 1.0f / sums.sum;
  for (int64_t j = 0; j < width; ++j) logits[j] *= scale;
  logits[target] -= 1.0f;
  return std::log(sums.sum) + sums.maximum - logit;
}

float cross_entropy_value(const float* logits, int64_t width, int64_t target) {
  const SoftmaxSums sums = softmax_sums<false>(logits, width);
  return std::log(sums.sum) + sums.maximum - logits[target];
}

void adamw(const AdamW& args, int64_t begin, int64_t end) {
  const float decay = 1.0f - args.learning_rate * args.weight_decay;
  const float step_size = args.learning_rate / args.bias_correction1;
  for (int64_t j = begin; j < end; ++j) {
    const float gradient = args.gradient[j] * args.gradient_scale;
    const float m = args.beta1 * args.first_moment[j] + (1.0f - args.beta1) * gradient;
    const float v = args.beta2 * args.second_moment[j] + (1.0f - args.beta2) * gradient * gradient;
    args.first_moment[j] = m;
    args.second_moment[j] = v;
    args.parameter[j] = args.parameter[j] * decay -
                        step_size * m / (std::sqrt(v) / args.bias_correction2_sqrt + args.eps);
  }
}

double sum_of_squares(const float* x, int64_t begin, int64_t end) {
  double sums[8] = {};
  int64_t j = begin;
  for (; j + 8 <= end; j += 8) {
    for (int64_t i = 0; i < 8; ++i) sums[i] += static_cast<double>(x[j + i]) * x[j + i];
  }
  for (; j < end; ++j) sums[0] += static_cast<double>(x[j]) * x[j];
  return ((sums[0] + sums[1]) + (sums[2] + sums[3])) + ((sums[4] + sums[5]) + (sums[6] + sums[7]));
}

}  // namespace

extern const CpuKernels kKernels;
const CpuKernels kKernels = {
    .name = T2R_CPU_ISA_NAME,
    .causal_forward_f32 = forward_item<float>,
    .causal_forward_f64 = forward_item<double>,
    .causal_backward_f32 = backward_item<float>,
    .causal_backward_f64 = backward_item<double>,
    .pointwise = {.rms_norm_f32 = rms_norm<float>,
                  .rms_norm_f64 = rms_norm<double>,
                  .rms_norm_backward_f32 = rms_norm_backward<float>,
                  .rms_norm_backward_f64 = rms_norm_backward<double>,
                  .swiglu_f32 = swiglu<float>,
                  .swiglu_f64 = swiglu<double>,
                  .swiglu_backward_f32 = swiglu_backward<float>,
                  .swiglu_backward_f64 = swiglu_backward<double>,
                  .rotate_f32 = rotate<float>,
                  .rotate_f64 = rotate<double>,
                  .cross_entropy_row = cross_entropy_row,
                  .cross_entropy_value = cross_entropy_value,
                  .adamw = adamw,
                  .sum_of_squares = sum_of_squares},
};

}  // namespace t2r::model::kernels::T2R_CPU_ISA
