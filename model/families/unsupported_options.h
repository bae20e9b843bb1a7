#pragma once

#include "model/families/config_fields.h"
#include "model/families/family.h"

namespace t2r::model {

/// Refuses a config.json that asks for something that would change what the model computes and that
/// t2r does not have: quantized weights, windows, caps and factors of other families
/// than this one.
/// @throws ConfigError  names file, option and value
void refuse_unsupported_options(const Fields& fields, const Family& family);

}  // namespace t2r::model
