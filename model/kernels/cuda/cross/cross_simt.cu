#include "model/kernels/cuda/cross/cross_simt.h"

namespace t2r::kernels::cuda {
namespace {

constexpr int kThreads = 256, kC = kCrossSimtChunk;

template <class Scalar>
__device__ Scalar* rows_of(const View& view, int batch, int head) {
  return static_cast<Scalar*>(view.data) + batch * view.batch_stride + head * view.head_stride;
}

/// What one block of threads works on: some chunks of the queries of one head, or of the source of
/// one state.
struct Item {
  int batch, head, state_head, key_head, value_head, chunk_begin, chunk_end;
  int64_t state, part;  ///< of (batch, state head), and of (batch, head, segment)

  __device__ Item(const Shape& shape, const Cut& cut, bool queries) {
    const int heads = queries ? shape.query_heads : shape.state_heads;
    batch = blockIdx.x / heads;
    head = blockIdx.x % heads;
    state_head = head / (heads / shape.state_heads);
    key_head = state_head / (shape.state_heads / shape.key_heads);
    value_head = state_head / (shape.state_heads / shape.value_heads);
    chunk_begin = blockIdx.y * cut.chunks_per_segment;
    chunk_end = min(chunk_begin + cut.chunks_per_segment, cut.chunks);
    state = int64_t{batch} * shape.state_heads + state_head;
    part = int64_t{blockIdx.x} * cut.segments + blockIdx.y;
  }
};

/// Loads `rows` rows to a [kC, columns] array; the others, and padding, become zero.
template <class Scalar>
__device__ void load_rows(Scalar* to,
                          const Scalar* from,
                          int64_t stride,
                          const unsigned char* mask,
                          int rows,
                          int columns) {
  for (int i = threadIdx.x; i < kC * columns; i += kThreads) {
    const int row = i / columns, column = i % columns;
    to[i] =
        row < rows && (mask == nullptr || mask[row] != 0) ? from[row * stride + column] : Scalar{0};
  }
}

template <class Scalar>
__device__ Scalar
dot(const Scalar* x, const Scalar* y, int size, int stride_x = 1, int stride_y = 1) {
  Scalar sum = 0;
  for (int i = 0; i < size; ++i) sum += x[i * stride_x] * y[i * stride_y];
  return sum;
}

/// The denominator from n = phi(q) . z, and its slope d denominator / d n.
template <class Scalar>
__device__ Scalar denominator_of(Scalar n, const CrossSimtArguments<Scalar>& a, Scalar& slope) {
  const Scalar raw = (a.absolute && n < 0 ? -n : n) + Scalar(a.added);
  slope = raw < Scalar(a.floor)  ? Scalar{0}
          : !a.absolute || n > 0 ? Scalar{1}
          : n < 0                ? Scalar{-1}
                                 : Scalar{0};
  return max(raw, Scalar(a.floor));
}

/// A block's share of S and z.
template <class Scalar>
__global__ void __launch_bounds__(kThreads) sums_kernel(const CrossSimtArguments<Scalar> a) {
  extern __shared__ __align__(16) unsigned char memory[];
  const int K = a.shape.feature_size, D = a.shape.head_size, tid = threadIdx.x;
  const Item item(a.shape, a.source, false);
  Scalar* const s = reinterpret_cast<Scalar*>(memory);  // [K][D], then z [K]
  Scalar* const phi = s + K * D + K;                    // [kC][K]
  Scalar* const v = phi + kC * K;                       // [kC][D]
  for (int i = tid; i < K * D + K; i += kThreads) s[i] = 0;
  for (int chunk = item.chunk_begin; chunk < item.chunk_end; ++chunk) {
    const int first = chunk * kC, rows = min(kC, a.source_length - first);
    const unsigned char* const mask =
        a.source_mask == nullptr ? nullptr
                                 : a.source_mask + int64_t{item.batch} * a.source_length + first;
    __syncthreads();
    load_rows(phi,
              rows_of<Scalar>(a.k, item.batch, item.key_head) + first * a.k.token_stride,
              a.k.token_stride,
              mask,
              rows,
              K);
    load_rows(v,
              rows_of<Scalar>(a.v, item.batch, item.value_head) + first * a.v.token_stride,
              a.v.token_stride,
              mask,
              rows,
              D);
    __syncthreads();
    for (int i = tid; i < K * D; i += kThreads) s[i] += dot(phi + i / D, v + i % D, rows, K, D);
    for (int i = tid; i < K; i += kThreads) {
      for (int row = 0; row < rows; ++row) s[K * D + i] += phi[row * K + i];
    }
  }
  __syncthreads();
  for (int i = tid; i < K * D + K; i += kThreads) a.sums[item.part * (K * D + K) + i] = s[i];
}

/// States from `count` consecutive shares each.
template <class Scalar>
__global__ void add_shares_kernel(const Scalar* sums, int count, int size, Scalar* states) {
  const int element = blockIdx.y * kThreads + threadIdx.x;
  if (element >= size) return;
  Scalar sum = 0;
  for (int i = 0; i < count; ++i) sum += sums[(int64_t{blockIdx.x} * count + i) * size + element];
  states[int64_t{blockIdx.x} * size + element] = sum;
}

template <class Scalar>
__global__ void __launch_bounds__(kThreads) query_kernel(const CrossSimtArguments<Scalar> a) {
  extern __shared__ __align__(16) unsigned char memory[];
  const int K = a.shape.feature_size, D = a.shape.head_size, tid = threadIdx.x;
  const Item item(a.shape, a.queries, true);
  const Scalar* const s = a.state + item.state * (K * D + K);
  const Scalar* const z = s + K * D;
  Scalar* const phi = reinterpret_cast<Scalar*>(memory);  // [kC][K]
  Scalar* const inverse = phi + kC * K;                   // [kC]
  for (int chunk = item.chunk_begin; chunk < item.chunk_end; ++chunk) {
    const int first = chunk * kC, rows = min(kC, a.shape.length - first);
    __syncthreads();
    load_rows<Scalar>(phi,
                      rows_of<Scalar>(a.q, item.batch, item.head) + first * a.q.token_stride,
                      a.q.token_stride,
                      nullptr,
                      rows,
                      K);
    __syncthreads();
    for (int row = tid; row < rows; row += kThreads) {
      Scalar slope;
      inverse[row] = Scalar{1} / denominator_of(dot(phi + row * K, z, K), a, slope);
    }
    __syncthreads();
    Scalar* const o = rows_of<Scalar>(a.o, item.batch, item.head) + first * a.o.token_stride;
    for (int i = tid; i < rows * D; i += kThreads) {
      const int row = i / D, column = i % D;
      o[row * a.o.token_stride + column] = dot(phi + row * K, s + column, K, 1, D) * inverse[row];
    }
  }
}

/// The formulas are those of cross_query_backward_kernel.
template <class Scalar>
__global__ void __launch_bounds__(kThreads)
    query_backward_kernel(const CrossSimtArguments<Scalar> a) {
  extern __shared__ __align__(16) unsigned char memory[];
  const int K = a.shape.feature_size, D = a.shape.head_size, tid = threadIdx.x;
  const Item item(a.shape, a.queries, true);
  const Scalar* const s = a.state + item.state * (K * D + K);
  const Scalar* const z = s + K * D;
  Scalar* const ds = reinterpret_cast<Scalar*>(memory);  // [K][D], then dz [K]
  Scalar* const phi = ds + K * D + K;                    // [kC][K]
  Scalar* const dphi = phi + kC * K;                     // [kC][K]: S d o
  Scalar* const grad_o = dphi + kC * K;                  // [kC][D]
  Scalar* const inverse = grad_o + kC * D;               // [kC]
  Scalar* const e = inverse + kC;                        // [kC]
  for (int i = tid; i < K * D + K; i += kThreads) ds[i] = 0;
  for (int chunk = item.chunk_begin; chunk < item.chunk_end; ++chunk) {
    const int first = chunk * kC, rows = min(kC, a.shape.length - first);
    __syncthreads();
    load_rows<Scalar>(phi,
                      rows_of<Scalar>(a.q, item.batch, item.head) + first * a.q.token_stride,
                      a.q.token_stride,
                      nullptr,
                      rows,
                      K);
    load_rows<Scalar>(
        grad_o,
        rows_of<Scalar>(a.grad_o, item.batch, item.head) + first * a.grad_o.token_stride,
        a.grad_o.token_stride,
        nullptr,
        rows,
        D);
    __syncthreads();
    for (int i = tid; i < rows * K; i += kThreads)
      dphi[i] = dot(grad_o + i / K * D, s + i % K * D, D);
    __syncthreads();
    for (int row = tid; row < rows; row += kThreads) {
      Scalar slope;
      inverse[row] = Scalar{1} / denominator_of(dot(phi + row * K, z, K), a, slope);
      e[row] = -dot(phi + row * K, dphi + row * K, K) * inverse[row] * slope;
    }
    __syncthreads();
    Scalar* const grad_q =
        rows_of<Scalar>(a.grad_q, item.batch, item.head) + first * a.grad_q.token_stride;
    for (int i = tid; i < rows * K; i += kThreads) {
      const int row = i / K, feature = i % K;
      grad_q[row * a.grad_q.token_stride + feature] =
          (dphi[i] + e[row] * z[feature]) * inverse[row];
    }
    for (int i = tid; i < K * D + K; i += kThreads) {
      const bool is_z = i >= K * D;
      const int feature = is_z ? i - K * D : i / D, column = i % D;
      Scalar sum = ds[i];
      for (int row = 0; row < rows; ++row)
        sum += phi[row * K + feature] * inverse[row] * (is_z ? e[row] : grad_o[row * D + column]);
      ds[i] = sum;
    }
  }
  __syncthreads();
  for (int i = tid; i < K * D + K; i += kThreads) a.sums[item.part * (K * D + K) + i] = ds[i];
}

/// The formulas are those of cross_source_backward_kernel.
template <class Scalar>
__global__ void __launch_bounds__(kThreads)
    source_backward_kernel(const CrossSimtArguments<Scalar> a) {
  extern __shared__ __align__(16) unsigned char memory[];
  const int K = a.shape.feature_size, D = a.shape.head_size, tid = threadIdx.x;
  const Item item(a.shape, a.source, false);
  const Scalar* const ds = a.grad_state + item.state * (K * D + K);
  const Scalar* const dz = ds + K * D;
  Scalar* const phi = reinterpret_cast<Scalar*>(memory);  // [kC][K]
  Scalar* const v = phi + kC * K;                         // [kC][D]
  for (int chunk = item.chunk_begin; chunk < item.chunk_end; ++chunk) {
    const int first = chunk * kC, rows = min(kC, a.source_length - first);
    const unsigned char* const mask =
        a.source_mask == nullptr ? nullptr
                                 : a.source_mask + int64_t{item.batch} * a.source_length + first;
    __syncthreads();
    load_rows(phi,
              rows_of<Scalar>(a.k, item.batch, item.key_head) + first * a.k.token_stride,
              a.k.token_stride,
              mask,
              rows,
              K);
    load_rows(v,
              rows_of<Scalar>(a.v, item.batch, item.value_head) + first * a.v.token_stride,
              a.v.token_stride,
              mask,
              rows,
              D);
    __syncthreads();
    Scalar* const grad_k =
        rows_of<Scalar>(a.grad_k, item.batch, item.head) + first * a.grad_k.token_stride;
    Scalar* const grad_v =
        rows_of<Scalar>(a.grad_v, item.batch, item.head) + first * a.grad_v.token_stride;
    for (int i = tid; i < rows * K; i += kThreads) {
      const int row = i / K, feature = i % K;
      const bool exists = mask == nullptr || mask[row] != 0;
      grad_k[row * a.grad_k.token_stride + feature] =
          exists ? dot(v + row * D, ds + feature * D, D) + dz[feature] : Scalar{0};
    }
    for (int i = tid; i < rows * D; i += kThreads) {
      const int row = i / D, column = i % D;
      grad_v[row * a.grad_v.token_stride + column] = dot(phi + row * K, ds + column, K, 1, D);
    }
  }
}

template <class Scalar>
cudaError_t launch(void (*kernel)(CrossSimtArguments<Scalar>),
                   bool queries,
                   int scalars,
                   const CrossSimtArguments<Scalar>& a,
                   cudaStream_t stream) {
  const size_t bytes = sizeof(Scalar) * scalars;
  const cudaError_t error = cudaFuncSetAttribute(
      kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(bytes));
  if (error != cudaSuccess) return error;
  const dim3 grid(a.shape.batch * (queries ? a.shape.query_heads : a.shape.state_heads),
                  (queries ? a.queries : a.source).segments);
  kernel<<<grid, kThreads, bytes, stream>>>(a);
  return cudaGetLastError();
}

template <class Scalar>
cudaError_t add_shares(const CrossSimtArguments<Scalar>& a,
                       int count,
                       Scalar* states,
                       cudaStream_t stream) {
  const int size = a.shape.feature_size * (a.shape.head_size + 1);
  const dim3 grid(a.shape.batch * a.shape.state_heads, (size + kThreads - 1) / kThreads);
  add_shares_kernel<Scalar><<<grid, kThreads, 0, stream>>>(a.sums, count, size, states);
  return cudaGetLastError();
}

/// Numbers in the shared memory of the two kernels that keep a state there.
int sums_scalars(int K, int D) {
  return K * D + K + kC * (K + D);
}
int query_backward_scalars(int K, int D) {
  return K * D + K + kC * (2 * K + D + 2);
}

}  // namespace

int64_t cross_simt_bytes(const Shape& shape, bool backward, int scalar_bytes) {
  return int64_t{scalar_bytes} *
         (backward ? query_backward_scalars : sums_scalars)(shape.feature_size, shape.head_size);
}

template <class Scalar>
cudaError_t cross_forward_simt(const CrossSimtArguments<Scalar>& a, cudaStream_t stream) {
  const int K = a.shape.feature_size, D = a.shape.head_size;
  cudaError_t error = launch(&sums_kernel<Scalar>, false, sums_scalars(K, D), a, stream);
  if (error == cudaSuccess) error = add_shares(a, a.source.segments, a.state, stream);
  if (error == cudaSuccess) error = launch(&query_kernel<Scalar>, true, kC * (K + 1), a, stream);
  return error;
}

template <class Scalar>
cudaError_t cross_backward_simt(const CrossSimtArguments<Scalar>& a, cudaStream_t stream) {
  const int K = a.shape.feature_size, D = a.shape.head_size,
            group = a.shape.query_heads / a.shape.state_heads;
  cudaError_t error =
      launch(&query_backward_kernel<Scalar>, true, query_backward_scalars(K, D), a, stream);
  if (error == cudaSuccess) error = add_shares(a, group * a.queries.segments, a.grad_state, stream);
  if (error == cudaSuccess)
    error = launch(&source_backward_kernel<Scalar>, false, kC * (K + D), a, stream);
  return error;
}

template cudaError_t cross_forward_simt(const CrossSimtArguments<float>&, cudaStream_t);
template cudaError_t cross_forward_simt(const CrossSimtArguments<double>&, cudaStream_t);
template cudaError_t cross_backward_simt(const CrossSimtArguments<float>&, cudaStream_t);
template cudaError_t cross_backward_simt(const CrossSimtArguments<double>&, cudaStream_t);

}  // namespace t2r::kernels::cuda
