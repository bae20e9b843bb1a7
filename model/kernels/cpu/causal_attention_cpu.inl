// The chunked form of causal linear attention for one instruction set; compiled once per set by
// cpu_<isa>.cpp.
//
// Legend: C rows of a chunk, K features, V values. Per chunk, with S [K, V] and z [K] the state
// before it:
//   A = tril(phi_q phi_k^T)            numerator = A v + phi_q S        denominator = rowsum(A) +
//   phi_q z
// Backward, with dn = do / den, dd = -(do . o) / den (0 where the floor holds), dS and dz of the
// state after it:
//   dA = tril(dn v^T + dd 1^T)         dphi_q = dA phi_k + dn S^T + dd z^T
//   dphi_k = dA^T phi_q + v dS^T + 1 dz^T        dv = A^T dn + phi_k dS

#include <algorithm>
#include <cstring>
#include <vector>

#include "model/kernels/cpu/causal_attention_cpu.h"
#include "model/kernels/cpu/dispatch.h"
#include "model/kernels/cpu/tile_matmul.h"

namespace t2r::model::kernels::T2R_CPU_ISA {
namespace {

constexpr int64_t kChunk = 64;
constexpr int64_t kBlock = 16;  // rows of the causal triangle that are handled at once

template <class T>
class Workspace {
 public:
  T* take(int64_t count) {
    T* result = storage_.data() + used_;
    used_ += padded<T>(count);
    return result;
  }

  void reset(int64_t count) {
    if (static_cast<int64_t>(storage_.size()) < count) storage_.resize(count);
    used_ = 0;
  }

 private:
  std::vector<T> storage_;
  int64_t used_ = 0;
};

// Rows [t0, t0 + count) of one head into a [kChunk, stride] buffer; padding columns and missing
// rows become zero.
template <class T>
void load_rows(
    View<const T> view, int64_t b, int64_t h, int64_t t0, int64_t count, int64_t width, T* out) {
  const int64_t stride = padded<T>(width);
  for (int64_t i = 0; i < count; ++i) {
    std::memcpy(out + i * stride, view.row(b, t0 + i, h), width * sizeof(T));
    std::fill(out + i * stride + width, out + (i + 1) * stride, T(0));
  }
  std::fill(out + count * stride, out + kChunk * stride, T(0));
}

template <class T, bool add>
void store_rows(
    View<T> view, int64_t b, int64_t h, int64_t t0, int64_t count, int64_t width, const T* in) {
  const int64_t stride = padded<T>(width);
  for (int64_t i = 0; i < count; ++i) {
    T* row = view.row(b, t0 + i, h);
    if constexpr (add) {
      for (int64_t j = 0; j < width; ++j) row[j] += in[i * stride + j];
    } else {
      std::memcpy(row, in + i * stride, width * sizeof(T));
    }
  }
}

// out[columns, padded(rows)] = in[rows, padded(columns)]^T
template <class T>
void transpose(const T* in, int64_t rows, int64_t columns, T* out) {
  const int64_t stride_in = padded<T>(columns);
  const int64_t stride_out = padded<T>(rows);
  for (int64_t i0 = 0; i0 < rows; i0 += kBlock) {
    const int64_t i1 = std::min(rows, i0 + kBlock);
    for (int64_t j = 0; j < columns; ++j) {
      for (int64_t i = i0; i < i1; ++i) out[j * stride_out + i] = in[i * stride_in + j];
    }
  }
  for (int64_t j = 0; j < columns; ++j) {
    std::fill(out + j * stride_out + rows, out + (j + 1) * stride_out, T(0));
  }
}

template <class T>
T dot(const T* x, const T* y, int64_t size) {
  Vector<T> sums{};
  for (int64_t j = 0; j < size; j += kLanes<T>) {
    sums += load(x + j) * load(y + j);
  }
  T total = 0;
  for (int64_t lane = 0; lane < kLanes<T>; ++lane) total += sums[lane];
  return total;
}

template <class T>
T sum(const T* x, int64_t size) {
  Vector<T> sums{};
  for (int64_t j = 0; j < size; j += kLanes<T>) sums += load(x + j);
  T total = 0;
  for (int64_t lane = 0; lane < kLanes<T>; ++lane) total += sums[lane];
  return total;
}

template <class T>
void add_scaled(T factor, const T* x, int64_t size, T* y) {
  for (int64_t j = 0; j < size; ++j) y[j] += factor * x[j];
}

// Columns of the causal triangle that the block of rows starting at i0 needs.
inline int64_t triangle_width(int64_t i0) {
  return std::min(kChunk, i0 + kBlock);
}

// out = tril(left right^T), given right^T [depth, kChunk]; blocks above the diagonal are left
// untouched.
template <class T>
void multiply_triangle(
    const T* left, const T* right_transposed, int64_t rows, int64_t depth, T* out) {
  const int64_t stride = padded<T>(depth);
  for (int64_t i0 = 0; i0 < rows; i0 += kBlock) {
    const int64_t height = std::min(kBlock, rows - i0);
    const int64_t width = triangle_width(i0);
    multiply<T, false>({left + i0 * stride, stride, 1},
                       right_transposed,
                       kChunk,
                       out + i0 * kChunk,
                       kChunk,
                       height,
                       width,
                       depth);
    for (int64_t i = i0; i < i0 + height; ++i) {
      std::fill(out + i * kChunk + i + 1, out + i * kChunk + width, T(0));
    }
  }
}

// out[rows, width] (+)= triangle right
template <class T, bool accumulate>
void triangle_times(const T* triangle, const T* right, int64_t rows, int64_t width, T* out) {
  const int64_t stride = padded<T>(width);
  for (int64_t i0 = 0; i0 < rows; i0 += kBlock) {
    multiply<T, accumulate>({triangle + i0 * kChunk, kChunk, 1},
                            right,
                            stride,
                            out + i0 * stride,
                            stride,
                            std::min(kBlock, rows - i0),
                            width,
                            std::min(rows, triangle_width(i0)));
  }
}

// out[rows, width] += triangle^T right
template <class T>
void transposed_triangle_times(
    const T* triangle, const T* right, int64_t rows, int64_t width, T* out) {
  const int64_t stride = padded<T>(width);
  for (int64_t j0 = 0; j0 < rows; j0 += kBlock) {
    multiply<T, true>({triangle + j0 * kChunk + j0, 1, kChunk},
                      right + j0 * stride,
                      stride,
                      out + j0 * stride,
                      stride,
                      std::min(kBlock, rows - j0),
                      width,
                      rows - j0);
  }
}

// The state with padded rows, as the products need it.
template <class T>
struct State {
  T* s;  // [K, padded V]
  T* z;  // [padded K]

  void load(const T* from_s, const T* from_z, int64_t features, int64_t values) {
    const int64_t stride = padded<T>(values);
    std::fill(s, s + features * stride, T(0));
    std::fill(z, z + padded<T>(features), T(0));
    if (from_s == nullptr) return;
    for (int64_t k = 0; k < features; ++k) {
      std::memcpy(s + k * stride, from_s + k * values, values * sizeof(T));
    }
    std::memcpy(z, from_z, features * sizeof(T));
  }

  void store(T* to_s, T* to_z, int64_t features, int64_t values) const {
    const int64_t stride = padded<T>(values);
    for (int64_t k = 0; k < features; ++k) {
      std::memcpy(to_s + k * values, s + k * stride, values * sizeof(T));
    }
    std::memcpy(to_z, z, features * sizeof(T));
  }

  // S += phi_k^T v, z += sum of phi_k
  void add_chunk(const T* phi_k, const T* v, int64_t rows, int64_t features, int64_t values) {
    const int64_t stride = padded<T>(features);
    multiply<T, true>(
        {phi_k, 1, stride}, v, padded<T>(values), s, padded<T>(values), features, values, rows);
    for (int64_t i = 0; i < rows; ++i) add_scaled(T(1), phi_k + i * stride, stride, z);
  }
};

template <class T>
T clamped(T raw, const DenominatorRule& rule) {
  return std::max(raw + static_cast<T>(rule.added), static_cast<T>(rule.floor));
}

template <class T>
Workspace<T>& thread_workspace(int64_t count) {
  static thread_local Workspace<T> workspace;
  workspace.reset(count);
  return workspace;
}

}  // namespace

template <class T>
void forward_item(const CausalForward<T>& args, int64_t item) {
  const CausalShape& shape = args.shape;
  const int64_t b = item / shape.value_heads;
  const int64_t hv = item % shape.value_heads;
  const int64_t K = shape.feature_size, V = shape.value_size;
  const int64_t Kp = padded<T>(K), Vp = padded<T>(V);
  const int64_t states_per_value = shape.state_heads / shape.value_heads;
  const int64_t queries_per_state = shape.query_heads / shape.state_heads;

  Workspace<T>& workspace =
      thread_workspace<T>(kChunk * (3 * Kp + 2 * Vp + 2 * kChunk) + K * Vp + Kp + 256);
  T* phi_k = workspace.take(kChunk * Kp);
  T* phi_k_transposed = workspace.take(Kp * kChunk);
  T* phi_q = workspace.take(kChunk * Kp);
  T* v = workspace.take(kChunk * Vp);
  T* scores = workspace.take(kChunk * kChunk);
  T* numerator = workspace.take(kChunk * Vp);
  State<T> state{workspace.take(K * Vp), workspace.take(Kp)};

  for (int64_t hs = hv * states_per_value; hs < (hv + 1) * states_per_value; ++hs) {
    T* outer_s = args.state_s + (b * shape.state_heads + hs) * K * V;
    T* outer_z = args.state_z + (b * shape.state_heads + hs) * K;
    state.load(outer_s, outer_z, K, V);
    for (int64_t t0 = 0; t0 < shape.length; t0 += kChunk) {
      const int64_t rows = std::min(kChunk, shape.length - t0);
      load_rows(args.phi_k, b, hs, t0, rows, K, phi_k);
      load_rows(args.v, b, hv, t0, rows, V, v);
      transpose(phi_k, kChunk, K, phi_k_transposed);
      for (int64_t hq = hs * queries_per_state; hq < (hs + 1) * queries_per_state; ++hq) {
        load_rows(args.phi_q, b, hq, t0, rows, K, phi_q);
        multiply_triangle(phi_q, phi_k_transposed, rows, K, scores);
        triangle_times<T, false>(scores, v, rows, V, numerator);
        multiply<T, true>({phi_q, Kp, 1}, state.s, Vp, numerator, Vp, rows, V, K);
        for (int64_t i = 0; i < rows; ++i) {
          const T raw =
              sum(scores + i * kChunk, padded<T>(i + 1)) + dot(phi_q + i * Kp, state.z, Kp);
          if (args.denominator != nullptr) {
            args.denominator[(b * shape.length + t0 + i) * shape.query_heads + hq] = raw;
          }
          const T scale = T(1) / clamped(raw, args.rule);
          const T* row = numerator + i * Vp;
          T* out = args.o.row(b, t0 + i, hq);
          for (int64_t j = 0; j < V; ++j) out[j] = row[j] * scale;
        }
      }
      state.add_chunk(phi_k, v, rows, K, V);
    }
    state.store(outer_s, outer_z, K, V);
  }
}

namespace {

// Buffers of one chunk's backward; all padded as load_rows leaves them.
template <class T>
struct BackwardBuffers {
  T *phi_q, *phi_k, *phi_k_transposed, *v, *v_transposed;
  T *grad_numerator, *grad_denominator, *scores, *grad_scores;
  T *grad_phi_q, *grad_phi_k, *grad_v;
  T *transposed_state, *transposed_grad_state, *output_row;

  BackwardBuffers(Workspace<T>& workspace, int64_t K, int64_t V) {
    const int64_t Kp = padded<T>(K), Vp = padded<T>(V);
    for (T** rows : {&phi_q, &phi_k, &grad_phi_q, &grad_phi_k}) *rows = workspace.take(kChunk * Kp);
    for (T** rows : {&v, &grad_numerator, &grad_v}) *rows = workspace.take(kChunk * Vp);
    phi_k_transposed = workspace.take(Kp * kChunk);
    v_transposed = workspace.take(Vp * kChunk);
    scores = workspace.take(kChunk * kChunk);
    grad_scores = workspace.take(kChunk * kChunk);
    grad_denominator = workspace.take(kChunk);
    transposed_state = workspace.take(Vp * Kp);
    transposed_grad_state = workspace.take(Vp * Kp);
    output_row = workspace.take(Vp);
  }

  static int64_t count(int64_t K, int64_t V) {
    const int64_t Kp = padded<T>(K), Vp = padded<T>(V);
    return kChunk * (5 * Kp + 4 * Vp + 2 * kChunk + 1) + 2 * Vp * Kp + Vp + 512;
  }
};

// Gradients of numerator and denominator of a chunk's outputs of one query head.
template <class T>
void output_gradients(const CausalBackward<T>& args,
                      int64_t b,
                      int64_t hq,
                      int64_t t0,
                      int64_t rows,
                      BackwardBuffers<T>& buffers) {
  const int64_t V = args.shape.value_size;
  const int64_t Vp = padded<T>(V);
  load_rows(args.grad_o, b, hq, t0, rows, V, buffers.grad_numerator);
  std::fill(buffers.output_row, buffers.output_row + Vp, T(0));
  for (int64_t i = 0; i < rows; ++i) {
    const T raw = args.denominator[(b * args.shape.length + t0 + i) * args.shape.query_heads + hq];
    const T scale = T(1) / clamped(raw, args.rule);
    std::memcpy(buffers.output_row, args.o.row(b, t0 + i, hq), V * sizeof(T));
    T* row = buffers.grad_numerator + i * Vp;
    const bool is_free = raw + static_cast<T>(args.rule.added) >= static_cast<T>(args.rule.floor);
    buffers.grad_denominator[i] = is_free ? -dot(row, buffers.output_row, Vp) * scale : T(0);
    for (int64_t j = 0; j < V; ++j) row[j] *= scale;
  }
}

// One query head of one chunk: writes dphi_q, adds to the buffers of dphi_k and dv and to the
// state's gradient.
template <class T>
void backward_query_head(const CausalBackward<T>& args,
                         int64_t b,
                         int64_t hq,
                         int64_t t0,
                         int64_t rows,
                         BackwardBuffers<T>& buffers,
                         const T* state_z,
                         State<T>& grad_state) {
  const int64_t K = args.shape.feature_size, V = args.shape.value_size;
  const int64_t Kp = padded<T>(K), Vp = padded<T>(V);
  load_rows(args.phi_q, b, hq, t0, rows, K, buffers.phi_q);
  output_gradients(args, b, hq, t0, rows, buffers);
  multiply_triangle(buffers.phi_q, buffers.phi_k_transposed, rows, K, buffers.scores);
  multiply_triangle(buffers.grad_numerator, buffers.v_transposed, rows, V, buffers.grad_scores);
  for (int64_t i = 0; i < rows; ++i) {
    T* row = buffers.grad_scores + i * kChunk;
    for (int64_t j = 0; j <= i; ++j) row[j] += buffers.grad_denominator[i];
  }
  triangle_times<T, false>(buffers.grad_scores, buffers.phi_k, rows, K, buffers.grad_phi_q);
  multiply<T, true>({buffers.grad_numerator, Vp, 1},
                    buffers.transposed_state,
                    Kp,
                    buffers.grad_phi_q,
                    Kp,
                    rows,
                    K,
                    V);
  for (int64_t i = 0; i < rows; ++i) {
    add_scaled(buffers.grad_denominator[i], state_z, Kp, buffers.grad_phi_q + i * Kp);
  }
  store_rows<T, false>(args.grad_phi_q, b, hq, t0, rows, K, buffers.grad_phi_q);

  transposed_triangle_times(buffers.grad_scores, buffers.phi_q, rows, K, buffers.grad_phi_k);
  transposed_triangle_times(buffers.scores, buffers.grad_numerator, rows, V, buffers.grad_v);
  multiply<T, true>(
      {buffers.phi_q, 1, Kp}, buffers.grad_numerator, Vp, grad_state.s, Vp, K, V, rows);
  for (int64_t i = 0; i < rows; ++i) {
    add_scaled(buffers.grad_denominator[i], buffers.phi_q + i * Kp, Kp, grad_state.z);
  }
}

// States before each chunk, so that the backward needs one reverse sweep: [num_chunks] x (S, z).
template <class T>
void sweep_states(const CausalBackward<T>& args,
                  int64_t b,
                  int64_t hs,
                  int64_t hv,
                  BackwardBuffers<T>& buffers,
                  std::vector<T>& states) {
  const int64_t K = args.shape.feature_size, V = args.shape.value_size;
  const int64_t size = K * padded<T>(V) + padded<T>(K);
  const int64_t num_chunks = (args.shape.length + kChunk - 1) / kChunk;
  states.resize(num_chunks * size);
  const int64_t index = b * args.shape.state_heads + hs;
  State<T> state{states.data(), states.data() + K * padded<T>(V)};
  state.load(args.state_s + index * K * V, args.state_z + index * K, K, V);
  for (int64_t chunk = 0; chunk + 1 < num_chunks; ++chunk) {
    load_rows(args.phi_k, b, hs, chunk * kChunk, kChunk, K, buffers.phi_k);
    load_rows(args.v, b, hv, chunk * kChunk, kChunk, V, buffers.v);
    std::memcpy(state.s + size, state.s, size * sizeof(T));
    state.s += size;
    state.z += size;
    state.add_chunk(buffers.phi_k, buffers.v, kChunk, K, V);
  }
}

}  // namespace

template <class T>
void backward_item(const CausalBackward<T>& args, int64_t item) {
  const CausalShape& shape = args.shape;
  const int64_t b = item / shape.value_heads;
  const int64_t hv = item % shape.value_heads;
  const int64_t K = shape.feature_size, V = shape.value_size;
  const int64_t Kp = padded<T>(K), Vp = padded<T>(V);
  const int64_t states_per_value = shape.state_heads / shape.value_heads;
  const int64_t queries_per_state = shape.query_heads / shape.state_heads;
  const int64_t num_chunks = (shape.length + kChunk - 1) / kChunk;

  Workspace<T>& workspace = thread_workspace<T>(BackwardBuffers<T>::count(K, V) + K * Vp + Kp + 64);
  BackwardBuffers<T> buffers(workspace, K, V);
  State<T> grad_state{workspace.take(K * Vp), workspace.take(Kp)};
  static thread_local std::vector<T> states;

  for (int64_t hs = hv * states_per_value; hs < (hv + 1) * states_per_value; ++hs) {
    const int64_t index = b * shape.state_heads + hs;
    sweep_states(args, b, hs, hv, buffers, states);
    grad_state.load(args.grad_state_s + index * K * V, args.grad_state_z + index * K, K, V);
    for (int64_t chunk = num_chunks - 1; chunk >= 0; --chunk) {
      const int64_t t0 = chunk * kChunk;
      const int64_t rows = std::min(kChunk, shape.length - t0);
      const T* state_s = states.data() + chunk * (K * Vp + Kp);
      const T* state_z = state_s + K * Vp;
      load_rows(args.phi_k, b, hs, t0, rows, K, buffers.phi_k);
      load_rows(args.v, b, hv, t0, rows, V, buffers.v);
      transpose(buffers.phi_k, kChunk, K, buffers.phi_k_transposed);
      transpose(buffers.v, kChunk, V, buffers.v_transposed);
      transpose(state_s, K, V, buffers.transposed_state);
      transpose(grad_state.s, K, V, buffers.transposed_grad_state);

      multiply<T, false>({buffers.v, Vp, 1},
                         buffers.transposed_grad_state,
                         Kp,
                         buffers.grad_phi_k,
                         Kp,
                         rows,
                         K,
                         V);
      for (int64_t i = 0; i < rows; ++i) {
        add_scaled(T(1), grad_state.z, Kp, buffers.grad_phi_k + i * Kp);
      }
      multiply<T, false>({buffers.phi_k, Kp, 1}, grad_state.s, Vp, buffers.grad_v, Vp, rows, V, K);
      for (int64_t hq = hs * queries_per_state; hq < (hs + 1) * queries_per_state; ++hq) {
        backward_query_head(args, b, hq, t0, rows, buffers, state_z, grad_state);
      }
      store_rows<T, false>(args.grad_phi_k, b, hs, t0, rows, K, buffers.grad_phi_k);
      if (hs == hv * states_per_value) {
        store_rows<T, false>(args.grad_v, b, hv, t0, rows, V, buffers.grad_v);
      } else {
        store_rows<T, true>(args.grad_v, b, hv, t0, rows, V, buffers.grad_v);
      }
    }
    grad_state.store(args.grad_state_s + index * K * V, args.grad_state_z + index * K, K, V);
  }
}

}  // namespace t2r::model::kernels::T2R_CPU_ISA
