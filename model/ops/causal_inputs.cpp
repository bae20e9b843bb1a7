#include "model/ops/causal_inputs.h"

#include <ATen/core/grad_mode.h>

#include "model/ops/op_support.h"

namespace t2r::ops {
namespace {

constexpr int kMaxFeatures = 128;

void check_tensor(const Tensor& tensor, const char* name, int64_t dimensions, const Tensor& like) {
  TORCH_CHECK(tensor.dim() == dimensions,
              "t2r: ",
              name,
              " has ",
              tensor.dim(),
              " dimensions, allowed: ",
              dimensions);
  TORCH_CHECK(tensor.device() == like.device(),
              "t2r: ",
              name,
              " is on ",
              tensor.device(),
              ", q is on ",
              like.device(),
              ", allowed: one device");
}

void check_like(const Tensor& tensor, const char* name, const Tensor& like) {
  check_tensor(tensor, name, 4, like);
  TORCH_CHECK(tensor.scalar_type() == like.scalar_type(),
              "t2r: ",
              name,
              " has dtype ",
              tensor.scalar_type(),
              ", q has ",
              like.scalar_type(),
              ", allowed: the same");
  TORCH_CHECK(tensor.size(0) == like.size(0) && tensor.size(1) == like.size(1),
              "t2r: ",
              name,
              " has batch and length ",
              tensor.size(0),
              " x ",
              tensor.size(1),
              ", q has ",
              like.size(0),
              " x ",
              like.size(1),
              ", allowed: the same");
}

void check_sizes(const Tensor& tensor, const char* name, at::IntArrayRef want) {
  TORCH_CHECK(
      tensor.sizes() == want, "t2r: ", name, " has shape ", tensor.sizes(), ", allowed: ", want);
}

}  // namespace

void check_bf16_strides(const Tensor& tensor, const char* name) {
  TORCH_CHECK(tensor.stride(3) == 1,
              "t2r: ",
              name,
              " has stride ",
              tensor.stride(3),
              " in its last dimension, allowed: 1");
  for (int dimension = 0; dimension < 3; ++dimension) {
    TORCH_CHECK(tensor.size(dimension) == 1 || tensor.stride(dimension) % 8 == 0,
                "t2r: ",
                name,
                " has stride ",
                tensor.stride(dimension),
                " in dimension ",
                dimension,
                ", allowed: multiples of 8 (16 bytes)");
  }
  TORCH_CHECK(is_aligned(tensor),
              "t2r: ",
              name,
              " begins at an address that is not a multiple of 16 bytes, allowed: multiples of 16");
}

kernels::cuda::Shape check_causal(const CausalInputs& in) {
  const Tensor& q = in.q_BTHd;
  TORCH_CHECK(q.is_cuda(), "t2r: q is on ", q.device(), ", allowed: cuda");
  TORCH_CHECK(q.scalar_type() == at::kBFloat16 || q.scalar_type() == at::kFloat ||
                  q.scalar_type() == at::kDouble,
              "t2r: q has dtype ",
              q.scalar_type(),
              ", allowed: bfloat16, float32, float64");
  check_like(q, "q", q);
  check_like(in.k_BTHd, "k", q);
  check_like(in.v_BTHd, "v", q);
  TORCH_CHECK(in.weight_MKd.defined() == in.bias_MK.defined(),
              "t2r: weight and bias come together");
  const bool has_map = in.weight_MKd.defined();
  kernels::cuda::Shape shape;
  for (const int dimension : {0, 1}) {
    TORCH_CHECK(q.size(dimension) >= 1 && q.size(dimension) < (int64_t{1} << 31),
                "t2r: q has size ",
                q.size(dimension),
                " in dimension ",
                dimension,
                ", allowed: 1 to 2^31 - 1");
  }
  shape.batch = static_cast<int>(q.size(0));
  shape.length = static_cast<int>(q.size(1));
  shape.query_heads = static_cast<int>(q.size(2));
  shape.key_heads = static_cast<int>(in.k_BTHd.size(2));
  shape.value_heads = static_cast<int>(in.v_BTHd.size(2));
  shape.head_size = static_cast<int>(in.v_BTHd.size(3));
  TORCH_CHECK(shape.head_size == 32 || shape.head_size == 64 || shape.head_size == 128,
              "t2r: v has head size ",
              shape.head_size,
              ", allowed: 32, 64, 128");
  TORCH_CHECK(in.k_BTHd.size(3) == q.size(3),
              "t2r: k has ",
              in.k_BTHd.size(3),
              " columns, q has ",
              q.size(3),
              ", allowed: the same");
  int64_t features = q.size(3);
  if (has_map) {
    const Tensor& weight = in.weight_MKd;
    check_tensor(weight, "weight", 3, q);
    check_tensor(in.bias_MK, "bias", 2, q);
    for (const auto& [tensor, name] :
         {std::pair{&weight, "weight"}, std::pair{&in.bias_MK, "bias"}}) {
      TORCH_CHECK(tensor->scalar_type() == q.scalar_type(),
                  "t2r: ",
                  name,
                  " has dtype ",
                  tensor->scalar_type(),
                  ", q has ",
                  q.scalar_type(),
                  ", allowed: the same");
    }
    TORCH_CHECK(q.size(3) == shape.head_size,
                "t2r: q has head size ",
                q.size(3),
                ", v has ",
                shape.head_size,
                ", allowed: the same");
    features = weight.size(1);
    check_sizes(weight, "weight", {weight.size(0), features, shape.head_size});
    check_sizes(in.bias_MK, "bias", {weight.size(0), features});
    shape.state_heads = static_cast<int>(weight.size(0));
  } else {
    shape.state_heads = shape.key_heads;
  }
  TORCH_CHECK(features >= 1 && features <= kMaxFeatures,
              "t2r: feature size is ",
              features,
              ", allowed: 1 to ",
              kMaxFeatures);
  shape.feature_size = static_cast<int>(features);
  check_heads(shape, has_map);
  check_rule(in.scale, in.rule.floor, in.rule.added);
  if (in.document_start_BT.defined()) {
    check_tensor(in.document_start_BT, "document_start", 2, q);
    check_sizes(in.document_start_BT, "document_start", {q.size(0), q.size(1)});
    TORCH_CHECK(in.document_start_BT.scalar_type() == at::kInt,
                "t2r: document_start has dtype ",
                in.document_start_BT.scalar_type(),
                ", allowed: int32");
  }
  TORCH_CHECK(in.initial_s_BMKd.defined() == in.initial_z_BMK.defined(),
              "t2r: initial_s and initial_z come together");
  if (in.initial_s_BMKd.defined()) {
    const auto state_type = q.scalar_type() == at::kDouble ? at::kDouble : at::kFloat;
    check_tensor(in.initial_s_BMKd, "initial_s", 4, q);
    check_tensor(in.initial_z_BMK, "initial_z", 3, q);
    check_sizes(
        in.initial_s_BMKd, "initial_s", {q.size(0), shape.state_heads, features, shape.head_size});
    check_sizes(in.initial_z_BMK, "initial_z", {q.size(0), shape.state_heads, features});
    for (const auto& [tensor, name] :
         {std::pair{&in.initial_s_BMKd, "initial_s"}, std::pair{&in.initial_z_BMK, "initial_z"}}) {
      TORCH_CHECK(tensor->scalar_type() == state_type,
                  "t2r: ",
                  name,
                  " has dtype ",
                  tensor->scalar_type(),
                  ", allowed: ",
                  state_type);
    }
  }
  return shape;
}

std::array<Tensor, 3> qkv_parts(const Tensor& qkv, int64_t query_heads) {
  TORCH_CHECK(qkv.dim() == 4,
              "t2r: qkv has ",
              qkv.dim(),
              " dimensions, allowed: 4 ([B, T, heads of q, k, v, d])");
  TORCH_CHECK(query_heads >= 1 && qkv.size(2) > query_heads && (qkv.size(2) - query_heads) % 2 == 0,
              "t2r: qkv has ",
              qkv.size(2),
              " heads, ",
              query_heads,
              " of them queries, allowed: an even number of others");
  const int64_t key_heads = (qkv.size(2) - query_heads) / 2;
  return {qkv.narrow(2, 0, query_heads),
          qkv.narrow(2, query_heads, key_heads),
          qkv.narrow(2, query_heads + key_heads, key_heads)};
}

bool needs_gradient(const CausalInputs& in) {
  if (!at::GradMode::is_enabled()) return false;
  const auto needs = [](const Tensor& tensor) {
    return tensor.defined() && tensor.requires_grad();
  };
  return in.q_BTHd.requires_grad() || in.k_BTHd.requires_grad() || in.v_BTHd.requires_grad() ||
         needs(in.weight_MKd) || needs(in.bias_MK) || needs(in.initial_s_BMKd) ||
         needs(in.initial_z_BMK);
}

}  // namespace t2r::ops
