#include "model/kernels/cuda/sm90/causal_sm90.cuh"

namespace t2r::kernels::cuda::sm90 {
namespace {

using Encode = decltype(&cuTensorMapEncodeTiled);

/// The driver's encoder, found at run time so that nothing links the driver.
Encode find_encoder() {
  void* function = nullptr;
  cudaDriverEntryPointQueryResult found;
  const cudaError_t error = cudaGetDriverEntryPointByVersion(
      "cuTensorMapEncodeTiled", &function, 12000, cudaEnableDefault, &found);
  return error == cudaSuccess && found == cudaDriverEntryPointSuccess
             ? reinterpret_cast<Encode>(function)
             : nullptr;
}

struct Encoder {
  Encode encode;
  const Shape& shape;
  CUresult result = CUDA_SUCCESS;

  /// A map of `view`; box: `rows` tokens, `box_columns` columns, swizzled as Tile<box_columns> is.
  void operator()(
      CUtensorMap& map, const View& view, int heads, int columns, int box_columns, int rows) {
    const auto stride = [](int64_t elements,
                           int size) {  // what is not stepped over may have any stride
      return static_cast<cuuint64_t>(size == 1 ? 16 : elements * 2);
    };
    const cuuint64_t sizes[4] = {
        cuuint64_t(columns), cuuint64_t(shape.length), cuuint64_t(heads), cuuint64_t(shape.batch)};
    const cuuint64_t strides[3] = {stride(view.token_stride, shape.length),
                                   stride(view.head_stride, heads),
                                   stride(view.batch_stride, shape.batch)};
    const cuuint32_t box[4] = {cuuint32_t(box_columns), cuuint32_t(rows), 1, 1};
    const cuuint32_t steps[4] = {1, 1, 1, 1};
    if (result != CUDA_SUCCESS) return;
    result = encode(&map,
                    CU_TENSOR_MAP_DATA_TYPE_BFLOAT16,
                    4,
                    view.data,
                    sizes,
                    strides,
                    box,
                    steps,
                    CU_TENSOR_MAP_INTERLEAVE_NONE,
                    box_columns == 64 ? CU_TENSOR_MAP_SWIZZLE_128B : CU_TENSOR_MAP_SWIZZLE_64B,
                    CU_TENSOR_MAP_L2_PROMOTION_L2_128B,
                    CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
  }
};

}  // namespace

cudaError_t make_tensor_maps(const CausalArguments& a, bool backward, TensorMaps& maps) {
  static const Encode encode = find_encoder();
  if (encode == nullptr) return cudaErrorNotSupported;
  // The encoder wants a context, which a thread that has called nothing of CUDA yet does not have
  // (autograd's, at the first backward).
  int device = 0;
  cudaError_t error = cudaGetDevice(&device);
  if (error == cudaSuccess) error = cudaSetDevice(device);
  if (error != cudaSuccess) return error;
  const Shape& shape = a.shape;
  const bool has_map = a.weight != nullptr;
  const int head_size = shape.head_size, chunk = a.plan.chunk;
  const int columns = has_map ? head_size : shape.feature_size,
            box = has_map ? 64 : a.plan.padded_features;
  Encoder make{encode, shape};
  make(maps.q, a.q, shape.query_heads, columns, box, chunk);
  make(maps.k, a.k, shape.key_heads, columns, box, chunk);
  make(maps.v, a.v, shape.value_heads, head_size, 64, chunk);
  if (backward) {
    make(maps.grad_o, a.grad_o, shape.query_heads, head_size, 64, chunk);
    make(maps.grad_q, a.grad_q, shape.query_heads, columns, box, chunk);
    make(maps.grad_k, a.grad_k, shape.query_heads, columns, box, chunk);
    make(maps.grad_v, a.grad_v, shape.query_heads, head_size, 64, chunk);
  } else {
    make(maps.o, a.o, shape.query_heads, head_size, 64, head_size == kHead ? chunk : 16);
  }
  if (has_map && head_size == kHead) {
    Shape of_weight = shape;
    of_weight.batch = 1;
    of_weight.length = shape.feature_size;
    Encoder make_weight{encode, of_weight};
    const View weight{const_cast<void*>(a.weight), 0, kHead, int64_t{shape.feature_size} * kHead};
    make_weight(maps.weight, weight, shape.state_heads, kHead, kHead, a.plan.padded_features);
    if (make_weight.result != CUDA_SUCCESS) return cudaErrorInvalidValue;
  }
  return make.result == CUDA_SUCCESS ? cudaSuccess : cudaErrorInvalidValue;
}

}  // namespace t2r::kernels::cuda::sm90
