#pragma once

#include "model/config.h"
#include "model/families/config_fields.h"

namespace t2r::model {

/// How positions rotate: rope_theta and rope_scaling or rope_parameters, as transformers 5 reads
/// them.
/// @param theta          where no base is said
/// @param max_positions  where llama3's first context is not said
/// @throws ConfigError   if t2r does not have the rotation, or a number is out of range
RopeConfig read_rope(const Fields& fields, double theta, int64_t max_positions);

void write_rope(const RopeConfig& rope, Fields::Json& json);

}  // namespace t2r::model
