#pragma once

#include <filesystem>
#include <optional>
#include <string>

#include "model/files/config_json.h"
#include "model/files/hugging_face.h"
#include "model/files/weight_names.h"
#include "model/nets/decoder_lm.h"

namespace t2r::model {

/// LibTorch's name of a type that weights may have; empty for the others.
std::optional<torch::ScalarType> scalar_type(DType dtype);

/// A Hugging Face folder that has been read and checked, and is not yet a model: its files stay
/// mapped, and nothing of the weights' size is allocated.
class ModelSource {
 public:
  /// Verifies the files against the manifest that t2r wrote beside them, if it did.
  /// @throws DataError, ConfigError  as load_model(), but for what check_fits() finds
  explicit ModelSource(const std::filesystem::path& folder);

  /// tied_embeddings says how the weights are: a config that ties two matrices which are both there
  /// and differ does not describe them. transformers 5 does not tie those either.
  const DecoderConfig& config() const { return config_; }
  const std::string& folder() const { return folder_; }
  const ModelWeights& weights() const { return weights_; }
  const NamedWeights& named() const { return named_; }

  /// Compares names, shapes and types with those of a model; on torch::kMeta it can be of any size.
  /// @param may_lack_new  tensors that T2R adds may be absent
  /// @throws DataError  if a tensor is missing, unknown, of another shape or holds no weights
  void check_fits(const Trainable& model, bool may_lack_new) const;

  /// Copies the weights into `model`, which they fit.
  /// @throws NumericError  if one of them is not finite
  void copy_to(Trainable& model) const;

  /// What `model` needs to go back as it came.
  SourceFormat format() const;

 private:
  const TensorView* find(const ParameterPiece& piece) const;
  bool is_known_beside(const std::string& name, const DecoderConfig& config) const;

  std::string folder_;
  std::string config_json_;
  DecoderConfig config_;
  ModelWeights weights_;
  NamedWeights named_;
};

}  // namespace t2r::model
