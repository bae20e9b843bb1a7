#pragma once

#include <cstdint>
#include <filesystem>
#include <map>
#include <memory>
#include <string>

#include "model/files/config_json.h"
#include "model/files/safetensors.h"
#include "model/nets/decoder_lm.h"

namespace t2r::model {

/// What a model's folder said beyond its parameters, kept so that the model can go back as it came.
struct SourceFormat {
  std::string config_json;              ///< the whole config.json
  std::map<std::string, DType> dtypes;  ///< stored type by the model's own tensor names
  Metadata metadata;                    ///< of the weights file
  std::string name_prefix_removed;      ///< "transformer." or "model." for files that leave it out
};

struct LoadedModel {
  std::unique_ptr<DecoderLM> model;
  SourceFormat format;
};

/// A float32 model from a Hugging Face folder (config.json, model.safetensors or its sharded
/// index), verified against the manifest beside it. Names and shapes are compared with the config
/// before memory for the weights is taken.
/// @throws DataError     if a file is missing, damaged or breaks its format, or a tensor is
///                       missing, unknown, of the wrong shape or of a type that holds no weights
/// @throws ConfigError   if the folder is no model's, or the model is one that t2r does not have
/// @throws NumericError  if a weight is not finite
LoadedModel load_model(const std::filesystem::path& folder);

/// Copies the weights in `folder` into `model`, e.g. a pretrained model's into a converted one.
/// The caller has verified the folder.
/// @param may_lack_new  tensors that T2R adds may be absent and then keep their values
SourceFormat load_weights(Trainable& model, const std::filesystem::path& folder, bool may_lack_new);

/// Writes config.json and the weights. Tensors go back in the type they came in (float32 if unknown
/// to the format), and config.json names the type of most of them.
/// @throws WriteError  if the folder cannot be made or written, or holds weights already
void save_model(const Trainable& model,
                const SourceFormat& format,
                const std::filesystem::path& folder);

class ModelSource;

/// The same for a model that `source` was turned into: the source's tensors are written as they lie
/// in its files, byte for byte, and beside them those that only the model has.
void save_converted(const Trainable& model,
                    const ModelSource& source,
                    const std::filesystem::path& folder);

}  // namespace t2r::model
