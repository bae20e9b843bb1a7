#include "model/layers/recompute.h"

#include <torch/csrc/autograd/autograd.h>
#include <torch/csrc/autograd/custom_function.h>
#include <torch/custom_class.h>

namespace t2r::model {
namespace {

using torch::Tensor;
using torch::autograd::AutogradContext;
using torch::autograd::variable_list;
using Compute = std::function<Tensor(const Tensor&)>;

struct Capsule : torch::CustomClassHolder {
  explicit Capsule(Compute compute_) : compute(std::move(compute_)) {}
  Compute compute;
};

class Recomputed : public torch::autograd::Function<Recomputed> {
 public:
  static Tensor forward(AutogradContext* ctx, const Tensor& x, const c10::IValue& capsule) {
    ctx->save_for_backward({x});
    ctx->saved_data["compute"] = capsule;
    return compute_of(capsule)(x);  // without gradients, as in every forward of a Function
  }

  static variable_list backward(AutogradContext* ctx, const variable_list& gradients) {
    if (!gradients[0].defined()) return variable_list(2);
    const Tensor x = ctx->get_saved_variables()[0].detach().requires_grad_(true);
    Tensor y;
    {
      const torch::AutoGradMode with_gradients(true);
      y = compute_of(ctx->saved_data["compute"])(x);
    }
    torch::autograd::backward({y}, {gradients[0]});  // the parameters' gradients are added here
    return {x.grad(), Tensor()};
  }

 private:
  static const Compute& compute_of(const c10::IValue& capsule) {
    return static_cast<const Capsule&>(*capsule.toCapsule()).compute;
  }
};

}  // namespace

Tensor recomputed(const Tensor& x, Compute compute) {
  // Without a gradient to x there is no backward of ours in which the parameters could get theirs.
  if (!torch::GradMode::is_enabled() || !x.requires_grad()) return compute(x);
  return Recomputed::apply(
      x, c10::IValue::make_capsule(c10::make_intrusive<Capsule>(std::move(compute))));
}

}  // namespace t2r::model
