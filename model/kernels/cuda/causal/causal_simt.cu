#include "model/kernels/cuda/causal/causal_simt.h"

namespace t2r::kernels::cuda {
namespace {

constexpr int kThreads = 256, kC = kSimtChunk;

template <class Scalar>
__device__ Scalar* rows_of(const View& view, int batch, int head) {
  return static_cast<Scalar*>(view.data) + batch * view.batch_stride + head * view.head_stride;
}

/// What one block of threads works on: one sequence and query head.
struct Item {
  int batch, head, state_head, key_head, value_head, group;
  const int* starts;

  template <class Arguments>
  __device__ explicit Item(const Arguments& a) {
    const Shape& shape = a.shape;
    group = shape.query_heads / shape.state_heads;
    batch = blockIdx.x / shape.query_heads;
    head = blockIdx.x % shape.query_heads;
    state_head = head / group;
    key_head = state_head / (shape.state_heads / shape.key_heads);
    value_head = state_head / (shape.state_heads / shape.value_heads);
    starts =
        a.document_start == nullptr ? nullptr : a.document_start + int64_t{batch} * shape.length;
  }

  __device__ int start(int token) const { return starts == nullptr ? 0 : starts[token]; }
};

/// Loads `rows` rows to a [kC, columns] array; the others become zero.
template <class Scalar>
__device__ void load_rows(Scalar* to, const Scalar* from, int64_t stride, int rows, int columns) {
  for (int i = threadIdx.x; i < kC * columns; i += kThreads) {
    const int row = i / columns, column = i % columns;
    to[i] = row < rows ? from[row * stride + column] : Scalar{0};
  }
}

template <class Scalar>
__device__ Scalar
dot(const Scalar* x, const Scalar* y, int size, int stride_x = 1, int stride_y = 1) {
  Scalar sum = 0;
  for (int i = 0; i < size; ++i) sum += x[i * stride_x] * y[i * stride_y];
  return sum;
}

template <class Scalar>
__global__ void __launch_bounds__(kThreads) forward_kernel(const SimtArguments<Scalar> a) {
  extern __shared__ __align__(16) unsigned char memory[];
  const int K = a.shape.feature_size, D = a.shape.head_size, T = a.shape.length, tid = threadIdx.x;
  const Item item(a);
  Scalar* const s = reinterpret_cast<Scalar*>(memory);  // [K][D]
  Scalar* const z = s + K * D;                          // [K]
  Scalar* const phi_q = z + K;                          // [kC][K]
  Scalar* const phi_k = phi_q + kC * K;
  Scalar* const v = phi_k + kC * K;     // [kC][D]
  Scalar* const p = v + kC * D;         // [kC][kC]
  Scalar* const inverse = p + kC * kC;  // [kC]
  const int64_t state = int64_t{item.batch} * a.shape.state_heads + item.state_head;
  for (int i = tid; i < K * D + K; i += kThreads) {
    s[i] = a.initial_s == nullptr ? Scalar{0}
           : i < K * D            ? a.initial_s[state * K * D + i]
                                  : a.initial_z[state * K + i - K * D];
  }
  const int chunks = (T + kC - 1) / kC;
  for (int chunk = 0; chunk < chunks; ++chunk) {
    const int first = chunk * kC, rows = min(kC, T - first);
    __syncthreads();
    if (a.states != nullptr) {
      Scalar* const record = a.states + (int64_t{blockIdx.x} * chunks + chunk) * (K * D + K);
      for (int i = tid; i < K * D + K; i += kThreads) record[i] = s[i];
    }
    load_rows(phi_q,
              rows_of<Scalar>(a.q, item.batch, item.head) + first * a.q.token_stride,
              a.q.token_stride,
              rows,
              K);
    load_rows(phi_k,
              rows_of<Scalar>(a.k, item.batch, item.key_head) + first * a.k.token_stride,
              a.k.token_stride,
              rows,
              K);
    load_rows(v,
              rows_of<Scalar>(a.v, item.batch, item.value_head) + first * a.v.token_stride,
              a.v.token_stride,
              rows,
              D);
    __syncthreads();
    for (int i = tid; i < rows * kC; i += kThreads) {
      const int row = i / kC, column = i % kC;
      const bool seen = column <= row && first + column >= item.start(first + row);
      p[i] = seen ? dot(phi_q + row * K, phi_k + column * K, K) : Scalar{0};
    }
    __syncthreads();
    for (int row = tid; row < rows; row += kThreads) {
      Scalar den = Scalar(a.added);
      for (int column = 0; column <= row; ++column) den += p[row * kC + column];
      if (item.start(first + row) < first || item.starts == nullptr)
        den += dot(phi_q + row * K, z, K);
      inverse[row] = Scalar{1} / max(den, Scalar(a.floor));
    }
    __syncthreads();
    Scalar* const o = rows_of<Scalar>(a.o, item.batch, item.head) + first * a.o.token_stride;
    for (int i = tid; i < rows * D; i += kThreads) {
      const int row = i / D, column = i % D;
      Scalar num = dot(p + row * kC, v + column, row + 1, 1, D);
      if (item.start(first + row) < first || item.starts == nullptr)
        num += dot(phi_q + row * K, s + column, K, 1, D);
      o[row * a.o.token_stride + column] = num * inverse[row];
    }
    __syncthreads();
    const int last_start = max(0, item.start(first + rows - 1) - first);
    const bool dropped = item.starts != nullptr && item.start(first + rows - 1) >= first;
    for (int i = tid; i < K * D; i += kThreads) {
      const int feature = i / D, column = i % D;
      s[i] = (dropped ? Scalar{0} : s[i]) + dot(phi_k + last_start * K + feature,
                                                v + last_start * D + column,
                                                rows - last_start,
                                                K,
                                                D);
    }
    for (int feature = tid; feature < K; feature += kThreads) {
      Scalar sum = dropped ? Scalar{0} : z[feature];
      for (int row = last_start; row < rows; ++row) sum += phi_k[row * K + feature];
      z[feature] = sum;
    }
  }
  __syncthreads();
  if (a.final_s != nullptr && item.head % item.group == 0) {
    for (int i = tid; i < K * D; i += kThreads) a.final_s[state * K * D + i] = s[i];
    for (int i = tid; i < K; i += kThreads) a.final_z[state * K + i] = z[i];
  }
}

/// A block of threads of backward_kernel: arrays in shared memory (symbols as in
/// causal_backward.cuh) and the chunk that it is at.
///
/// Barriers, per chunk: inputs have come | p and dp | denominators and e | gradients are written |
/// dS and dz are (before the next chunk's inputs).
template <class Scalar>
class Backward {
 public:
  __device__ Backward(const SimtArguments<Scalar>& arguments, unsigned char* memory)
      : a(arguments), item(arguments), ds(reinterpret_cast<Scalar*>(memory)) {}

  __device__ void run() {
    start();
    for (int chunk = chunks - 1; chunk >= 0; --chunk) {
      first = chunk * kC, rows = min(kC, T - first);
      s = a.states + (int64_t{blockIdx.x} * chunks + chunk) * (K * D + K);
      __syncthreads();
      load(phi_q, a.q, item.head, K);
      load(phi_k, a.k, item.key_head, K);
      load(v, a.v, item.value_head, D);
      load(grad_o, a.grad_o, item.head, D);
      __syncthreads();
      make_weights();
      __syncthreads();
      make_terms();
      __syncthreads();
      last_start = item.starts == nullptr ? 0 : max(0, item.start(first + rows - 1) - first);
      write_grad_q_and_k();
      write_grad_v();
      __syncthreads();
      add_sums();
    }
    __syncthreads();
    if (a.grad_initial_s != nullptr) {
      for (int i = tid; i < K * D; i += kThreads)
        a.grad_initial_s[int64_t{blockIdx.x} * K * D + i] = ds[i];
      for (int i = tid; i < K; i += kThreads) a.grad_initial_z[int64_t{blockIdx.x} * K + i] = dz[i];
    }
  }

 private:
  /// dS and dz are the gradient of the final state, in the first head of a group.
  __device__ void start() {
    const int64_t state = int64_t{item.batch} * a.shape.state_heads + item.state_head;
    const bool takes_final = a.grad_final_s != nullptr && item.head % item.group == 0;
    for (int i = tid; i < K * D + K; i += kThreads) {
      ds[i] = !takes_final ? Scalar{0}
              : i < K * D  ? a.grad_final_s[state * K * D + i]
                           : a.grad_final_z[state * K + i - K * D];
    }
  }

  __device__ void load(Scalar* to, const View& view, int head, int columns) {
    load_rows(to, at(view, head), view.token_stride, rows, columns);
  }
  /// The chunk's first row of a view.
  __device__ Scalar* at(const View& view, int head) const {
    return rows_of<Scalar>(view, item.batch, head) + first * view.token_stride;
  }
  /// Whether a row sees the state before the chunk.
  __device__ bool carried(int row) const {
    return item.starts == nullptr || item.start(first + row) < first;
  }

  __device__ void make_weights() {
    for (int i = tid; i < rows * kC; i += kThreads) {
      const int row = i / kC, column = i % kC;
      const bool seen = column <= row && first + column >= item.start(first + row);
      p[i] = seen ? dot(phi_q + row * K, phi_k + column * K, K) : Scalar{0};
      dp[i] = seen ? dot(grad_o + row * D, v + column * D, D) : Scalar{0};
    }
  }

  __device__ void make_terms() {
    const Scalar* const z = s + K * D;
    for (int row = tid; row < rows; row += kThreads) {
      Scalar den = Scalar(a.added), inner = 0;
      for (int column = 0; column <= row; ++column) {
        den += p[row * kC + column];
        inner += p[row * kC + column] * dp[row * kC + column];
      }
      if (carried(row)) {
        for (int feature = 0; feature < K; ++feature) {
          den += phi_q[row * K + feature] * z[feature];
          inner += phi_q[row * K + feature] * dot(grad_o + row * D, s + feature * D, D);
        }
      }
      inverse[row] = Scalar{1} / max(den, Scalar(a.floor));
      e[row] = den < Scalar(a.floor) ? Scalar{0} : -inner * inverse[row];
    }
  }

  __device__ void write_grad_q_and_k() {
    const Scalar* const z = s + K * D;
    Scalar *const grad_q = at(a.grad_q, item.head), *const grad_k = at(a.grad_k, item.head);
    for (int i = tid; i < rows * K; i += kThreads) {
      const int row = i / K, feature = i % K;
      Scalar sum = carried(row) ? dot(grad_o + row * D, s + feature * D, D) + e[row] * z[feature]
                                : Scalar{0};
      for (int column = max(0, item.start(first + row) - first); column <= row; ++column) {
        sum += (dp[row * kC + column] + e[row]) * phi_k[column * K + feature];
      }
      grad_q[row * a.grad_q.token_stride + feature] = sum * inverse[row];
      sum = row >= last_start ? dot(v + row * D, ds + feature * D, D) + dz[feature] : Scalar{0};
      for (int query = row; query < rows && item.start(first + query) <= first + row; ++query) {
        sum += (dp[query * kC + row] + e[query]) * inverse[query] * phi_q[query * K + feature];
      }
      grad_k[row * a.grad_k.token_stride + feature] = sum;
    }
  }

  __device__ void write_grad_v() {
    Scalar* const grad_v = at(a.grad_v, item.head);
    for (int i = tid; i < rows * D; i += kThreads) {
      const int row = i / D, column = i % D;
      Scalar sum = row >= last_start ? dot(phi_k + row * K, ds + column, K, 1, D) : Scalar{0};
      for (int query = row; query < rows; ++query)
        sum += p[query * kC + row] * inverse[query] * grad_o[query * D + column];
      grad_v[row * a.grad_v.token_stride + column] = sum;
    }
  }

  /// dS and dz of the chunk; what lies behind a document that began in it is dropped.
  __device__ void add_sums() {
    const bool dropped = item.starts != nullptr && item.start(first + rows - 1) >= first;
    for (int i = tid; i < K * D + K; i += kThreads) {
      const bool is_z = i >= K * D;
      const int feature = is_z ? i - K * D : i / D, column = i % D;
      Scalar sum = dropped ? Scalar{0} : ds[i];
      for (int row = 0; row < rows && carried(row); ++row) {
        sum += phi_q[row * K + feature] * inverse[row] * (is_z ? e[row] : grad_o[row * D + column]);
      }
      ds[i] = sum;
    }
  }

  const SimtArguments<Scalar>& a;
  const Item item;
  const int K = a.shape.feature_size, D = a.shape.head_size, T = a.shape.length;
  const int tid = threadIdx.x, chunks = (T + kC - 1) / kC;
  Scalar* const ds;               // [K][D]
  Scalar* const dz = ds + K * D;  // [K]
  Scalar* const phi_q = dz + K;   // [kC][K]
  Scalar* const phi_k = phi_q + kC * K;
  Scalar* const v = phi_k + kC * K;  // [kC][D]
  Scalar* const grad_o = v + kC * D;
  Scalar* const p = grad_o + kC * D;     // [kC][kC]
  Scalar* const dp = p + kC * kC;        // [kC][kC]: d o . v, then + e
  Scalar* const inverse = dp + kC * kC;  // [kC]
  Scalar* const e = inverse + kC;        // [kC]

  // Of the chunk: its first token, its tokens, the row where its last document begins, the state
  // before it.
  int first = 0, rows = 0, last_start = 0;
  const Scalar* s = nullptr;
};

/// The formulas are those of causal_backward_kernel.
template <class Scalar>
__global__ void __launch_bounds__(kThreads)
    backward_kernel(const __grid_constant__ SimtArguments<Scalar> a) {
  extern __shared__ __align__(16) unsigned char memory[];
  Backward<Scalar>(a, memory).run();
}

template <class Scalar>
cudaError_t launch(void (*kernel)(SimtArguments<Scalar>),
                   const SimtArguments<Scalar>& a,
                   bool backward,
                   cudaStream_t stream) {
  const auto bytes = static_cast<size_t>(causal_simt_bytes(a.shape, backward, sizeof(Scalar)));
  const cudaError_t error = cudaFuncSetAttribute(
      kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(bytes));
  if (error != cudaSuccess) return error;
  kernel<<<a.shape.batch * a.shape.query_heads, kThreads, bytes, stream>>>(a);
  return cudaGetLastError();
}

}  // namespace

int64_t causal_simt_bytes(const Shape& shape, bool backward, int scalar_bytes) {
  const int64_t K = shape.feature_size, D = shape.head_size, rows_of_values = backward ? 2 : 1;
  return scalar_bytes * (K * D + K + kC * (2 * K + rows_of_values * D + 2 * kC + 2));
}

template <class Scalar>
cudaError_t causal_forward_simt(const SimtArguments<Scalar>& a, cudaStream_t stream) {
  return launch(&forward_kernel<Scalar>, a, false, stream);
}

template <class Scalar>
cudaError_t causal_backward_simt(const SimtArguments<Scalar>& a, cudaStream_t stream) {
  return launch(&backward_kernel<Scalar>, a, true, stream);
}

template cudaError_t causal_forward_simt(const SimtArguments<float>&, cudaStream_t);
template cudaError_t causal_forward_simt(const SimtArguments<double>&, cudaStream_t);
template cudaError_t causal_backward_simt(const SimtArguments<float>&, cudaStream_t);
template cudaError_t causal_backward_simt(const SimtArguments<double>&, cudaStream_t);

}  // namespace t2r::kernels::cuda
