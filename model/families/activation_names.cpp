#include "model/families/activation_names.h"

#include "base/error.h"
#include "base/quoted_name.h"

namespace t2r::model {
namespace {

struct ActivationName {
  const char* name;
  Activation activation;
};

// The first name of an activation is the one that is written.
constexpr ActivationName kActivations[] = {{"gelu_new", Activation::kGeluTanh},
                                           {"gelu_pytorch_tanh", Activation::kGeluTanh},
                                           {"gelu_python_tanh", Activation::kGeluTanh},
                                           {"gelu_fast", Activation::kGeluTanh},
                                           {"gelu_accurate", Activation::kGeluTanh},
                                           {"gelu", Activation::kGeluErf},
                                           {"gelu_python", Activation::kGeluErf},
                                           {"relu", Activation::kRelu},
                                           {"silu", Activation::kSilu},
                                           {"swish", Activation::kSilu}};

}  // namespace

Activation parse_activation(const std::string& name, const std::string& file) {
  std::string known;
  for (const ActivationName& entry : kActivations) {
    if (name == entry.name) return entry.activation;
    known += concat(known.empty() ? "" : ", ", entry.name);
  }
  throw ConfigError(concat(file, ": activation ", quoted_name(name), ", allowed: ", known));
}

const char* activation_name(Activation activation) {
  for (const ActivationName& entry : kActivations) {
    if (entry.activation == activation) return entry.name;
  }
  throw ContractError("activation out of range");
}

}  // namespace t2r::model
