#pragma once

#include <string>
#include <vector>

#include "model/config.h"

namespace t2r::model {

/// The families that t2r reads, by model_type.
const std::vector<std::string>& family_names();

/// A config with all that models of this family have in common, and without sizes but that one.
/// @param num_layers    what a new model's layers without RoPE follow from; 0: not known yet
/// @throws ConfigError  if there is no such family
DecoderConfig config_of(const std::string& family, int64_t num_layers = 0);

}  // namespace t2r::model
