#pragma once

#include <ATen/core/Tensor.h>
#include <ATen/core/grad_mode.h>
#include <ATen/cuda/CUDAContextLight.h>
#include <c10/util/Exception.h>
#include <cuda_runtime_api.h>

#include <algorithm>
#include <cstdlib>
#include <optional>
#include <string_view>

#include "model/kernels/cuda/causal/causal_attention.h"
#include "model/kernels/cuda/causal/causal_memory.h"

/// What the operators share on their way from tensors to kernels.
namespace t2r::ops {

/// @throws c10::Error  naming `name`, unless `tensor` is `like` q in device and dtype and has the
/// wanted shape
inline void check_input(const at::Tensor& tensor,
                        const char* name,
                        at::IntArrayRef want,
                        const at::Tensor& q) {
  TORCH_CHECK(tensor.device() == q.device(),
              "t2r: ",
              name,
              " is on ",
              tensor.device(),
              ", q is on ",
              q.device(),
              ", allowed: one device");
  TORCH_CHECK(tensor.scalar_type() == q.scalar_type(),
              "t2r: ",
              name,
              " has dtype ",
              tensor.scalar_type(),
              ", q has ",
              q.scalar_type(),
              ", allowed: the same");
  TORCH_CHECK(
      tensor.sizes() == want, "t2r: ", name, " has shape ", tensor.sizes(), ", allowed: ", want);
}

/// Heads of queries, states, keys and values that can serve each other.
inline void check_heads(const kernels::cuda::Shape& shape, bool has_map) {
  const auto divides = [](int small, int large) {
    return small >= 1 && large >= small && large % small == 0;
  };
  TORCH_CHECK(divides(shape.state_heads, shape.query_heads) &&
                  divides(shape.key_heads, shape.state_heads) &&
                  divides(shape.value_heads, shape.state_heads),
              "t2r: heads of q, ",
              has_map ? "the map" : "phi(k)",
              ", k, v are ",
              shape.query_heads,
              ", ",
              shape.state_heads,
              ", ",
              shape.key_heads,
              ", ",
              shape.value_heads,
              ", allowed: q's a multiple of the second, that a multiple of k's and v's");
}

inline void check_rule(double scale, double floor, double added) {
  TORCH_CHECK(floor >= 0 && added >= 0 && floor + added > 0,
              "t2r: floor is ",
              floor,
              " and added ",
              added,
              ", allowed: not negative, and one of them positive");
  TORCH_CHECK(scale > 0, "t2r: scale is ", scale, ", allowed: positive");
}

inline void check_launch(cudaError_t error, const char* what) {
  if (error != cudaSuccess)
    static_cast<void>(cudaGetLastError());  // or the next launch, of whomever, would report it
  TORCH_CHECK(error == cudaSuccess, "t2r: ", what, " failed: ", cudaGetErrorString(error));
}

/// The current device. For tests T2R_CUDA_KERNELS=sm80 keeps to the portable kernels and to an
/// A100's shared memory, sm86 to that of smaller GPUs.
inline kernels::cuda::Device current_device() {
  const char* const wanted = std::getenv("T2R_CUDA_KERNELS");
  const cudaDeviceProp* const device = at::cuda::getCurrentDeviceProperties();
  const std::string_view family = wanted == nullptr ? "" : wanted;
  const int most = family == "sm80"   ? kernels::cuda::kAmpereSharedBytes
                   : family == "sm86" ? kernels::cuda::kSmallSharedBytes
                                      : kernels::cuda::kHopperSharedBytes;
  const bool portable = most < kernels::cuda::kHopperSharedBytes;
  return {.multiprocessors = device->multiProcessorCount,
          .hopper = device->major == 9 && device->minor == 0 && !portable,
          .shared_bytes = std::min(
              kernels::cuda::known_shared_bytes(static_cast<int>(device->sharedMemPerBlockOptin)),
              most)};
}

/// That a block of threads can have so much; sizes go far beyond what any model asks of a small
/// GPU.
/// @throws c10::Error
inline void require_shared_memory(int64_t bytes, const char* op) {
  const int allowed = current_device().shared_bytes;
  TORCH_CHECK(bytes <= allowed,
              "t2r: ",
              op,
              ": these sizes need ",
              bytes,
              " bytes of shared memory a block, allowed on this GPU: ",
              allowed);
}

template <class T>
const T* pointer(const at::Tensor& tensor) {
  return tensor.defined() ? static_cast<const T*>(tensor.const_data_ptr()) : nullptr;
}
template <class T>
T* mutable_pointer(const at::Tensor& tensor) {
  return tensor.defined() ? static_cast<T*>(tensor.mutable_data_ptr()) : nullptr;
}

/// Absent tensors may not reach autograd's Function as undefined ones.
using OptionalTensor = std::optional<at::Tensor>;

inline OptionalTensor optional(const at::Tensor& tensor) {
  return tensor.defined() ? OptionalTensor(tensor) : std::nullopt;
}

/// An absent tensor stays that.
inline at::Tensor contiguous(const at::Tensor& tensor) {
  return tensor.defined() ? tensor.contiguous() : tensor;
}
inline OptionalTensor contiguous(const OptionalTensor& tensor) {
  return tensor.has_value() ? OptionalTensor(tensor->contiguous()) : std::nullopt;
}

/// A token's heads [B, H, d] whose columns are contiguous.
inline at::Tensor with_contiguous_columns(const at::Tensor& tensor) {
  return tensor.stride(2) == 1 ? tensor : tensor.contiguous();
}

inline kernels::cuda::View view_of(const at::Tensor& tensor) {
  return {const_cast<void*>(tensor.const_data_ptr()),
          tensor.stride(0),
          tensor.stride(1),
          tensor.stride(2)};
}

/// One token's heads: [batch, head, column].
inline kernels::cuda::View token_view_of(const at::Tensor& tensor) {
  return {const_cast<void*>(tensor.const_data_ptr()), tensor.stride(0), 0, tensor.stride(1)};
}

inline bool is_aligned(const at::Tensor& tensor) {
  return reinterpret_cast<uintptr_t>(tensor.const_data_ptr()) % 16 == 0;
}

/// The same, in memory that 16-byte copies can read.
inline at::Tensor contiguous_and_aligned(const at::Tensor& tensor) {
  const at::Tensor result = contiguous(tensor);
  return result.defined() && !is_aligned(result) ? result.clone() : result;
}

/// Gradients of heads that share `heads` heads, added up over dimension `dimension`; an undefined
/// one stays that.
at::Tensor add_groups(const at::Tensor& gradient, int64_t dimension, int64_t heads);

/// For backward functions, whose kernels autograd does not see. @throws c10::Error  under
/// create_graph
inline void refuse_second_derivatives(const char* op) {
  TORCH_CHECK(!at::GradMode::is_enabled(),
              "t2r: ",
              op,
              ": second derivatives are not there, allowed: backward without create_graph");
}

/// A gradient of four dimensions, which may come with any strides, as 16-byte copies can read it.
at::Tensor readable_bf16(const at::Tensor& gradient);

/// A map's products scale W x + b in tensor operations: x_BTHd -> [B, T, maps, K], or queries'
/// heads; not contiguous.
at::Tensor map_products(const at::Tensor& x_BTHd,
                        const at::Tensor& weight_MKd,
                        const at::Tensor& bias_MK,
                        double scale);

/// T2R's map in tensor operations, where no kernel has it fused: the same, with relu. Of bfloat16
/// in float32, rounded once: a product rounded before its bias is added has the wrong sign, and so
/// gradient or none, in one of 6,000 features: 2 % of a gradient's norm.
at::Tensor map_features(const at::Tensor& x_BTHd,
                        const at::Tensor& weight_MKd,
                        const at::Tensor& bias_MK,
                        double scale);

}  // namespace t2r::ops
