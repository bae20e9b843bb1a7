#pragma once

#include <cstdint>
#include <filesystem>
#include <map>
#include <string>
#include <string_view>
#include <vector>

#include "model/files/safetensors.h"

namespace t2r::model {

inline constexpr const char* kWeightsFile = "model.safetensors";
inline constexpr const char* kWeightsIndexFile = "model.safetensors.index.json";

/// Tensor name to the file that holds it, of model.safetensors.index.json.
using WeightMap = std::map<std::string, std::string, std::less<>>;

/// Reads the text of an index and checks that it names only plain *.safetensors files of its
/// folder.
/// @param file  name for messages
/// @throws DataError  names file, byte and rule
WeightMap parse_weight_map(std::string_view text, const std::string& file);

/// All tensors of a model, from one file or from several with an index.
class ModelWeights {
 public:
  /// @throws DataError  if two files hold a tensor of the same name
  ModelWeights(std::filesystem::path source, std::vector<SafetensorsFile> files);

  /// File by file in the order of the files' names, each by rising offset; valid as long as this
  /// object.
  const std::vector<const TensorView*>& tensors() const { return tensors_; }

  /// The tensor of this name, or nullptr.
  const TensorView* find(std::string_view name) const;
  /// @throws DataError  if there is no tensor of this name
  const TensorView& at(std::string_view name) const;

  /// Metadata of the first file.
  const Metadata& metadata() const { return files_.front().metadata(); }

 private:
  std::filesystem::path source_;
  std::vector<SafetensorsFile> files_;
  std::vector<const TensorView*> tensors_;
  std::map<std::string_view, const TensorView*> by_name_;
};

/// Opens model.safetensors, or model.safetensors.index.json and all the files it names.
///
/// Links are followed, as the Hugging Face cache is made of them. The index and its files must name
/// exactly the same tensors; the index's own metadata is not used.
/// @throws DataError  if the folder has neither or both, or a file breaks its format
ModelWeights open_model_weights(const std::filesystem::path& folder);

/// Writes tensors as model.safetensors if they fit in one shard; else, in the given order, as
/// model-00001-of-0000N.safetensors and, last, the index.
///
/// @param max_shard_bytes  of tensor data, > 0; a larger tensor gets a shard of its own
/// @throws WriteError     if the folder already holds weights, or a file cannot be written
/// @throws ContractError  as write_safetensors()
void write_model_weights(const std::filesystem::path& folder,
                         const std::vector<TensorView>& tensors,
                         const Metadata& metadata,
                         uint64_t max_shard_bytes);

}  // namespace t2r::model
