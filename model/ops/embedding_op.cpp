#include "model/ops/embedding_op.h"

#include <ATen/Functions.h>
#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>
#include <torch/csrc/autograd/custom_function.h>

#include <limits>

#include "model/kernels/cuda/pointwise/embedding.h"
#include "model/ops/op_support.h"
#include "model/ops/training_inputs.h"

namespace t2r::ops {
namespace {

using kernels::cuda::EmbeddingBackward;
using kernels::cuda::EmbeddingForward;
using kernels::cuda::kEmbeddingPiece;
using kernels::cuda::PositionBackward;
using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

Tensor weight_gradient(const Tensor& tokens, const Tensor& grad, int64_t vocabulary) {
  const int64_t num_tokens = tokens.numel(), width = grad.size(-1),
                windows = (num_tokens + kEmbeddingPiece - 1) / kEmbeddingPiece;
  const Tensor result = at::zeros({vocabulary, width}, grad.options());
  if (num_tokens == 0) return result;
  const auto [sorted, places] =
      at::sort(tokens.reshape({-1}).to(at::kInt), std::optional<bool>(true), int64_t{0}, false);
  const Tensor pieces = at::empty({2 * windows, width}, grad.options().dtype(at::kFloat));
  const Tensor long_runs = at::full({windows}, -1, sorted.options());
  EmbeddingBackward a;
  a.num_tokens = num_tokens;
  a.width = width;
  a.vocabulary = vocabulary;
  a.is_bf16 = grad.scalar_type() == at::kBFloat16;
  a.sorted = pointer<int>(sorted);
  a.places = pointer<int64_t>(places);
  a.grad_out = pointer<void>(grad);
  a.grad_weight = mutable_pointer<void>(result);
  a.pieces = mutable_pointer<float>(pieces);
  a.long_runs = mutable_pointer<int>(long_runs);
  check_launch(kernels::cuda::embedding_backward(a, c10::cuda::getCurrentCUDAStream()),
               "the embedding's backward kernels");
  return result;
}

Tensor position_gradient(const Tensor& grad, int64_t length) {
  const int64_t width = grad.size(-1);
  const Tensor result = at::empty({length, width}, grad.options());
  PositionBackward a;
  a.columns = length * width;
  a.batch = a.columns > 0 ? grad.numel() / a.columns : 0;
  a.is_bf16 = grad.scalar_type() == at::kBFloat16;
  a.grad_out = pointer<void>(grad);
  a.grad_position = mutable_pointer<void>(result);
  check_launch(kernels::cuda::position_backward(a, c10::cuda::getCurrentCUDAStream()),
               "the kernel that sums over the batch");
  return result;
}

class Embedding : public torch::autograd::Function<Embedding> {
 public:
  static Tensor forward(AutogradContext* ctx,
                        const Tensor& weight,
                        const Tensor& tokens,
                        const OptionalTensor& position) {
    const c10::cuda::CUDAGuard guard(weight.device());
    std::vector<int64_t> sizes = tokens.sizes().vec();
    sizes.push_back(weight.size(1));
    const Tensor out = at::empty(sizes, weight.options());
    EmbeddingForward a;
    a.num_tokens = tokens.numel();
    a.length = tokens.size(-1);
    a.width = weight.size(1);
    a.vocabulary = weight.size(0);
    a.is_bf16 = weight.scalar_type() == at::kBFloat16;
    a.weight = pointer<void>(weight);
    a.tokens = pointer<int64_t>(tokens);
    if (position.has_value()) a.position = pointer<void>(*position);
    a.out = mutable_pointer<void>(out);
    check_launch(kernels::cuda::embedding_forward(a, c10::cuda::getCurrentCUDAStream()),
                 "the embedding kernel");
    ctx->save_for_backward({tokens});
    ctx->saved_data["vocabulary"] = weight.size(0);
    ctx->saved_data["wants_weight"] = weight.requires_grad();
    ctx->saved_data["wants_position"] = position.has_value() && position->requires_grad();
    return out;
  }

  static variable_list backward(AutogradContext* ctx, const variable_list& gradients) {
    const Tensor tokens = ctx->get_saved_variables()[0], grad = gradients[0].contiguous();
    const c10::cuda::CUDAGuard guard(grad.device());
    Tensor grad_weight, grad_position;
    if (ctx->saved_data["wants_weight"].toBool())
      grad_weight = weight_gradient(tokens, grad, ctx->saved_data["vocabulary"].toInt());
    if (ctx->saved_data["wants_position"].toBool())
      grad_position = position_gradient(grad, tokens.size(-1));
    return {grad_weight, Tensor(), grad_position};
  }
};

}  // namespace

Tensor embedding(const Tensor& weight, const Tensor& tokens, const OptionalTensor& position) {
  constexpr int64_t kMost = std::numeric_limits<int>::max();
  check_leading(weight, "embedding", "weight", 2);
  TORCH_CHECK(
      weight.dim() == 2, "t2r: embedding: weight has ", weight.dim(), " dimensions, allowed: 2");
  TORCH_CHECK(weight.size(0) <= kMost,
              "t2r: embedding: weight has ",
              weight.size(0),
              " rows, allowed: at most ",
              kMost);
  TORCH_CHECK(tokens.dim() >= 1, "t2r: embedding: tokens has 0 dimensions, allowed: at least 1");
  check_other(tokens, "embedding", "tokens", tokens.sizes(), at::kLong, weight);
  TORCH_CHECK(tokens.numel() <= kMost - kEmbeddingPiece,
              "t2r: embedding: tokens has ",
              tokens.numel(),
              " elements, allowed: at most ",
              kMost - kEmbeddingPiece);
  if (position.has_value())
    check_other(*position,
                "embedding",
                "position",
                {tokens.size(-1), weight.size(1)},
                weight.scalar_type(),
                weight);
  return Embedding::apply(weight.contiguous(), tokens.contiguous(), contiguous(position));
}

}  // namespace t2r::ops
