#pragma once

#include <ATen/core/Tensor.h>
#include <c10/util/Exception.h>

/// What the operators of the training step ask of their inputs; each message names operator,
/// argument, value and what is allowed.
namespace t2r::ops {

/// The input that decides device and dtype.
inline void check_leading(const at::Tensor& tensor,
                          const char* op,
                          const char* name,
                          int64_t least_dimensions) {
  TORCH_CHECK(
      tensor.is_cuda(), "t2r: ", op, ": ", name, " is on ", tensor.device(), ", allowed: cuda");
  TORCH_CHECK(tensor.scalar_type() == at::kBFloat16 || tensor.scalar_type() == at::kFloat,
              "t2r: ",
              op,
              ": ",
              name,
              " has dtype ",
              tensor.scalar_type(),
              ", allowed: bfloat16, float32");
  TORCH_CHECK(tensor.dim() >= least_dimensions,
              "t2r: ",
              op,
              ": ",
              name,
              " has ",
              tensor.dim(),
              " dimensions, allowed: at least ",
              least_dimensions);
}

/// Another one: on the leading one's device, of this dtype and shape.
inline void check_other(const at::Tensor& tensor,
                        const char* op,
                        const char* name,
                        at::IntArrayRef want,
                        at::ScalarType type,
                        const at::Tensor& leading) {
  TORCH_CHECK(tensor.device() == leading.device(),
              "t2r: ",
              op,
              ": ",
              name,
              " is on ",
              tensor.device(),
              ", allowed: ",
              leading.device());
  TORCH_CHECK(tensor.scalar_type() == type,
              "t2r: ",
              op,
              ": ",
              name,
              " has dtype ",
              tensor.scalar_type(),
              ", allowed: ",
              type);
  TORCH_CHECK(tensor.sizes() == want,
              "t2r: ",
              op,
              ": ",
              name,
              " has shape ",
              tensor.sizes(),
              ", allowed: ",
              want);
}

}  // namespace t2r::ops
