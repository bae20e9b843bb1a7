#include "model/ops/cross_inputs.h"

#include "model/ops/op_support.h"

namespace t2r::ops {

kernels::cuda::Shape check_cross(const CrossInputs& in) {
  constexpr int64_t kMaxFeatures = 128, kMaxSize = (int64_t{1} << 31) - 1;
  const Tensor &q = in.q_BTHd, &k = in.k_BSHd, &v = in.v_BSHd;
  TORCH_CHECK(q.is_cuda(), "t2r: q is on ", q.device(), ", allowed: cuda");
  TORCH_CHECK(q.scalar_type() == at::kBFloat16 || q.scalar_type() == at::kFloat ||
                  q.scalar_type() == at::kDouble,
              "t2r: q has dtype ",
              q.scalar_type(),
              ", allowed: bfloat16, float32, float64");
  for (const auto& [tensor, name] : {std::pair{&q, "q"}, std::pair{&k, "k"}, std::pair{&v, "v"}}) {
    TORCH_CHECK(
        tensor->dim() == 4, "t2r: ", name, " has ", tensor->dim(), " dimensions, allowed: 4");
    for (const int dimension : {0, 1}) {
      TORCH_CHECK(tensor->size(dimension) >= 1 && tensor->size(dimension) <= kMaxSize,
                  "t2r: ",
                  name,
                  " has size ",
                  tensor->size(dimension),
                  " in dimension ",
                  dimension,
                  ", allowed: 1 to 2^31 - 1");
    }
  }
  TORCH_CHECK(in.weight_MKd.defined() == in.bias_MK.defined(),
              "t2r: weight and bias come together");
  const bool has_map = in.weight_MKd.defined();
  TORCH_CHECK(!has_map || in.weight_MKd.dim() == 3,
              "t2r: weight has ",
              has_map ? in.weight_MKd.dim() : 0,
              " dimensions, allowed: 3");
  const int64_t batch = q.size(0), source = k.size(1), head_size = v.size(3);
  const int64_t features = has_map ? in.weight_MKd.size(1) : q.size(3);
  TORCH_CHECK(head_size == 32 || head_size == 64 || head_size == 128,
              "t2r: v has head size ",
              head_size,
              ", allowed: 32, 64, 128");
  TORCH_CHECK(features >= 1 && features <= kMaxFeatures,
              "t2r: feature size is ",
              features,
              ", allowed: 1 to ",
              kMaxFeatures);
  kernels::cuda::Shape shape;
  shape.batch = static_cast<int>(batch);
  shape.length = static_cast<int>(q.size(1));
  shape.query_heads = static_cast<int>(q.size(2));
  shape.key_heads = static_cast<int>(k.size(2));
  shape.value_heads = static_cast<int>(v.size(2));
  shape.state_heads = has_map ? static_cast<int>(in.weight_MKd.size(0)) : shape.key_heads;
  shape.head_size = static_cast<int>(head_size);
  shape.feature_size = static_cast<int>(features);
  check_heads(shape, has_map);
  TORCH_CHECK(batch * shape.query_heads <= kMaxSize,
              "t2r: q has ",
              batch,
              " x ",
              shape.query_heads,
              " sequences and heads, allowed: at most 2^31 - 1");
  const int64_t width = has_map ? head_size : features;
  check_input(q, "q", {batch, shape.length, shape.query_heads, width}, q);
  check_input(k, "k", {batch, source, shape.key_heads, width}, q);
  check_input(v, "v", {batch, source, shape.value_heads, head_size}, q);
  if (has_map) {
    check_input(in.weight_MKd, "weight", {shape.state_heads, features, head_size}, q);
    check_input(in.bias_MK, "bias", {shape.state_heads, features}, q);
  }
  if (in.source_mask_BS.defined()) {
    const Tensor& mask = in.source_mask_BS;
    TORCH_CHECK(mask.device() == q.device(),
                "t2r: source_mask is on ",
                mask.device(),
                ", q is on ",
                q.device(),
                ", allowed: one device");
    TORCH_CHECK(mask.scalar_type() == at::kBool,
                "t2r: source_mask has dtype ",
                mask.scalar_type(),
                ", allowed: ",
                at::kBool);
    TORCH_CHECK(mask.sizes() == at::IntArrayRef({batch, source}),
                "t2r: source_mask has shape ",
                mask.sizes(),
                ", allowed: [",
                batch,
                ", ",
                source,
                "]");
  }
  check_rule(in.scale, in.rule.floor, in.rule.added);
  return shape;
}

}  // namespace t2r::ops
