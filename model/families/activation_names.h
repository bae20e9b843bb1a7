#pragma once

#include <string>

#include "model/config.h"

namespace t2r::model {

/// The activation of this name in transformers.
/// @throws ConfigError  if t2r does not have it; names `file` and what is allowed
Activation parse_activation(const std::string& name, const std::string& file);

/// The name that is written for it.
const char* activation_name(Activation activation);

}  // namespace t2r::model
