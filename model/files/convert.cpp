#include "model/files/convert.h"

#include "base/error.h"

namespace t2r::model {

Conversion convert_to_linear(const ModelSource& source,
                             const LinearAttentionConfig& linear,
                             uint64_t seed) {
  DecoderConfig config = source.config();
  if (config.linear.has_value()) {
    throw ConfigError(concat(source.folder(),
                             " is converted already (feature map ",
                             config.linear->feature_map,
                             "); convert its softmax original"));
  }
  config.linear = linear;
  config.validate();
  source.check_fits(DecoderLM(config, torch::kMeta), /*may_lack_new=*/true);
  Conversion result;
  result.converted.model = std::make_unique<DecoderLM>(config);
  result.converted.model->initialize_feature_maps(seed);
  source.copy_to(*result.converted.model);
  result.converted.format = source.format();
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
