#include "model/ops/decode_op.h"

#include <ATen/Functions.h>
#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>

#include "model/kernels/cuda/decode/decode_step.h"
#include "model/ops/op_support.h"

namespace t2r::ops {
namespace {

using kernels::cuda::DecodeArguments;
using kernels::cuda::Shape;

constexpr int64_t kMaxFeatures = 128;

void check_state(const Tensor& state, const char* name, at::IntArrayRef want, const Tensor& q) {
  TORCH_CHECK(state.device() == q.device(),
              "t2r: ",
              name,
              " is on ",
              state.device(),
              ", q is on ",
              q.device(),
              ", allowed: one device");
  TORCH_CHECK(state.scalar_type() == at::kFloat,
              "t2r: ",
              name,
              " has dtype ",
              state.scalar_type(),
              ", allowed: ",
              at::kFloat);
  TORCH_CHECK(
      state.sizes() == want, "t2r: ", name, " has shape ", state.sizes(), ", allowed: ", want);
  TORCH_CHECK(state.is_contiguous(),
              "t2r: ",
              name,
              " has strides ",
              state.strides(),
              ", allowed: contiguous, as it is updated in place");
  TORCH_CHECK(is_aligned(state) || state.dim() == 3,
              "t2r: ",
              name,
              " begins at an address that is not a multiple of 16 bytes, allowed: multiples of 16");
}

Shape check_decode(const DecodeInputs& in) {
  const Tensor &q = in.q_BHd, &k = in.k_BHd, &v = in.v_BHd;
  TORCH_CHECK(q.is_cuda(), "t2r: q is on ", q.device(), ", allowed: cuda");
  TORCH_CHECK(q.scalar_type() == at::kBFloat16 || q.scalar_type() == at::kFloat,
              "t2r: q has dtype ",
              q.scalar_type(),
              ", allowed: bfloat16, float32");
  for (const auto& [tensor, name] : {std::pair{&q, "q"}, std::pair{&k, "k"}, std::pair{&v, "v"}}) {
    TORCH_CHECK(
        tensor->dim() == 3, "t2r: ", name, " has ", tensor->dim(), " dimensions, allowed: 3");
  }
  TORCH_CHECK(q.size(0) >= 1 && q.size(0) < (1 << 24),
              "t2r: q has size ",
              q.size(0),
              " in dimension 0, allowed: 1 to 2^24 - 1");
  TORCH_CHECK(in.weight_MKd.defined() == in.bias_MK.defined(),
              "t2r: weight and bias come together");
  const bool has_map = in.weight_MKd.defined();
  TORCH_CHECK(!has_map || in.weight_MKd.dim() == 3,
              "t2r: weight has ",
              has_map ? in.weight_MKd.dim() : 0,
              " dimensions, allowed: 3");
  Shape shape;
  shape.batch = static_cast<int>(q.size(0));
  shape.length = 1;
  shape.query_heads = static_cast<int>(q.size(1));
  shape.key_heads = static_cast<int>(k.size(1));
  shape.value_heads = static_cast<int>(v.size(1));
  shape.state_heads = has_map ? static_cast<int>(in.weight_MKd.size(0)) : shape.key_heads;
  const int64_t head_size = v.size(2), features = has_map ? in.weight_MKd.size(1) : q.size(2);
  TORCH_CHECK(head_size == 32 || head_size == 64 || head_size == 128,
              "t2r: v has head size ",
              head_size,
              ", allowed: 32, 64, 128");
  TORCH_CHECK(features >= 1 && features <= kMaxFeatures,
              "t2r: feature size is ",
              features,
              ", allowed: 1 to ",
              kMaxFeatures);
  shape.head_size = static_cast<int>(head_size);
  shape.feature_size = static_cast<int>(features);
  check_heads(shape, has_map);
  TORCH_CHECK(shape.query_heads / shape.state_heads <= kernels::cuda::kMaxDecodeGroup,
              "t2r: ",
              shape.query_heads / shape.state_heads,
              " query heads share a state, allowed: at most ",
              kernels::cuda::kMaxDecodeGroup);
  const int64_t width = has_map ? head_size : features, batch = shape.batch;
  check_input(q, "q", {batch, shape.query_heads, width}, q);
  check_input(k, "k", {batch, shape.key_heads, width}, q);
  check_input(v, "v", {batch, shape.value_heads, head_size}, q);
  if (has_map) {
    check_input(in.weight_MKd, "weight", {shape.state_heads, features, head_size}, q);
    check_input(in.bias_MK, "bias", {shape.state_heads, features}, q);
  }
  check_state(in.s_BHKd, "s", {batch, shape.state_heads, features, head_size}, q);
  check_state(in.z_BHK, "z", {batch, shape.state_heads, features}, q);
  check_rule(in.scale, in.rule.floor, in.rule.added);
  return shape;
}

}  // namespace

Tensor decode_step(const DecodeInputs& in) {
  DecodeArguments a;
  a.shape = check_decode(in);
  const c10::cuda::CUDAGuard guard(in.q_BHd.device());
  const Tensor q = with_contiguous_columns(in.q_BHd), k = with_contiguous_columns(in.k_BHd),
               v = with_contiguous_columns(in.v_BHd);
  const Tensor weight = contiguous_and_aligned(in.weight_MKd), bias = contiguous(in.bias_MK);
  const Tensor o = at::empty({a.shape.batch, a.shape.query_heads, a.shape.head_size},
                             q.options().requires_grad(false));
  a.rule = {static_cast<float>(in.scale),
            static_cast<float>(in.rule.floor),
            static_cast<float>(in.rule.added)};
  a.plan = kernels::cuda::plan_decode(
      a.shape, weight.defined(), q.scalar_type() == at::kBFloat16, current_device());
  require_shared_memory(a.plan.shared_bytes, "decode_step");
  a.q = token_view_of(q);
  a.k = token_view_of(k);
  a.v = token_view_of(v);
  a.o = token_view_of(o);
  a.weight = pointer<void>(weight);
  a.bias = pointer<void>(bias);
  a.s = mutable_pointer<float>(in.s_BHKd);
  a.z = mutable_pointer<float>(in.z_BHK);
  check_launch(kernels::cuda::decode_step(
                   a, q.scalar_type() == at::kBFloat16, c10::cuda::getCurrentCUDAStream()),
               "the decode kernel");
  return o;
}

}  // namespace t2r::ops
