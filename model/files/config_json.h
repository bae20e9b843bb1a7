#pragma once

#include <optional>
#include <string>

#include "model/config.h"
#include "model/files/safetensors.h"

namespace t2r::model {

inline constexpr const char* kConfigFile = "config.json";

/// model_type and architecture of a converted model. Its "t2r" section names the family it had, so
/// that nothing takes it for the softmax model that it no longer is.
inline constexpr const char* kT2rModelType = "t2r";
inline constexpr const char* kT2rArchitecture = "T2RForCausalLM";

/// Reads a config.json of the GPT-2 or Llama family, with the "t2r" section that conversion adds.
/// Converted models of before, with the family's own model_type, are read too.
/// @param file  name for messages
/// @throws DataError    if it is not JSON or a field has the wrong type
/// @throws ConfigError  if the model is of another kind, is quantized, uses an option that t2r does
/// not have, or a size or number is out of range; names it
DecoderConfig parse_config(const std::string& json, const std::string& file);

/// The config as config.json, which parse_config() reads back as `config`.
/// @param base_json  where the model came from: all that it says and the model does not change
/// stays. Empty: a config of its own
/// @param dtype      type of the weights file; empty: as `base_json` says
std::string write_config(const DecoderConfig& config,
                         const std::string& base_json,
                         std::optional<DType> dtype = {});

}  // namespace t2r::model
