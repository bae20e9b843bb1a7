#include "model/convert.h"

#include "base/durable_file.h"
#include "base/error.h"

namespace t2r::model {

Conversion convert_to_linear(const std::filesystem::path& folder,
                             const LinearAttentionConfig& linear,
                             uint64_t seed) {
  const std::filesystem::path config_file = folder / kConfigFile;
  DecoderConfig config = parse_config(read_file(config_file), config_file.string());
  if (config.linear.has_value()) {
    throw ConfigError(concat(folder.string(),
                             " is converted already (feature map ",
                             config.linear->feature_map,
                             "); convert its softmax original"));
  }
  config.linear = linear;
  config.validate();
  Conversion result;
  result.converted.model = std::make_unique<DecoderLM>(config);
  result.converted.model->initialize_feature_maps(seed);
  result.converted.format = load_weights(*result.converted.model, folder, /*may_lack_new=*/true);
  const ParameterSet& parameters = result.converted.model->parameters();
  for (const Parameter& parameter : parameters.all()) {
    for (const ParameterPiece& piece : parameter.pieces) {
      if (piece.is_new) result.new_tensors.push_back(piece.name);
    }
  }
  result.num_new = parameters.num_scalars(/*only_new=*/true);
  result.num_pretrained = parameters.num_scalars() - result.num_new;
  return result;
}

}  // namespace t2r::model
