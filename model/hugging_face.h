#pragma once

#include <cstdint>
#include <filesystem>
#include <map>
#include <memory>
#include <string>

#include "model/decoder_lm.h"
#include "model/safetensors.h"

namespace t2r::model {

inline constexpr const char* kConfigFile = "config.json";

/// What a model's folder said beyond its parameters, kept so that the model can go back as it came.
struct SourceFormat {
  std::string config_json;              ///< the whole config.json
  std::map<std::string, DType> dtypes;  ///< stored type per tensor name
  Metadata metadata;                    ///< of the weights file
  std::string name_prefix_removed;      ///< "transformer." for GPT-2 files that leave it out
};

struct LoadedModel {
  std::unique_ptr<DecoderLM> model;
  SourceFormat format;
};

/// Reads a config.json of the GPT-2 or Llama family, with the "t2r" section that conversion adds.
/// @param file  name for messages
/// @throws DataError    if it is not JSON or a field has the wrong type
/// @throws ConfigError  if the model is of another kind, or uses an option that t2r does not have;
/// names it
DecoderConfig parse_config(const std::string& json, const std::string& file);

/// The config as config.json: `base_json` (empty: a new one) with the fields that this project
/// knows set from `config`.
std::string write_config(const DecoderConfig& config, const std::string& base_json);

/// A float32 model from a Hugging Face folder (config.json, model.safetensors or its sharded
/// index).
/// @throws DataError  if a tensor is missing, unknown, of the wrong shape or of a type that holds
/// no weights
LoadedModel load_model(const std::filesystem::path& folder);

/// Copies the weights in `folder` into `model`, e.g. a pretrained model's into a converted one.
/// @param may_lack_new  tensors that T2R adds may be absent and then keep their values
SourceFormat load_weights(DecoderLM& model, const std::filesystem::path& folder, bool may_lack_new);

/// Writes config.json and the weights. Tensors go back in the type they came in (float32 if unknown
/// to the format).
/// @throws WriteError  if the folder cannot be made or written, or holds weights already
void save_model(const DecoderLM& model,
                const SourceFormat& format,
                const std::filesystem::path& folder);

}  // namespace t2r::model
