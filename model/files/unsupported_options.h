#pragma once

#include "model/files/config_fields.h"

namespace t2r::model {

/// Refuses a config.json that asks for something that would change what the model computes and that
/// t2r does not have: quantized weights, windows, caps and factors of other families.
/// @throws ConfigError  names file, option and value
void refuse_unsupported_options(const Fields& fields);

}  // namespace t2r::model
