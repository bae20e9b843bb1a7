#pragma once

#include <memory>
#include <string>
#include <vector>

#include "model/files/hugging_face.h"
#include "model/files/model_source.h"
#include "model/nets/decoder_lm.h"

namespace t2r::model {

/// A converted model and what conversion has done.
struct Conversion {
  LoadedModel converted;
  std::vector<std::string> new_tensors;
  int64_t num_pretrained = 0;  ///< scalars that were kept
  int64_t num_new = 0;         ///< scalars that were added
};

/// Swaps the softmax attention of a pretrained model for linear attention: every pretrained weight
/// stays as it is, and the feature maps get random parameters from `seed`. Source: Kasai et al.
/// 2021, section 2.3.
///
/// @throws ConfigError  if the model is converted already, or `linear` does not fit it
Conversion convert_to_linear(const ModelSource& source,
                             const LinearAttentionConfig& linear,
                             uint64_t seed);

}  // namespace t2r::model
