#pragma once

#include <functional>
#include <map>
#include <string>
#include <string_view>

#include "model/family_names.h"
#include "model/files/safetensors_index.h"

namespace t2r::model {

/// The tensors of a model's files under the names that the model has for them.
///
/// Files leave out the prefix of the whole ("transformer.", "model."), as those of GPT2Model and
/// LlamaModel do, or have more of it: `_orig_mod.` of torch.compile, `module.` of DDP, the wrappers
/// of FSDP and activation checkpointing.
struct NamedWeights {
  std::map<std::string, const TensorView*, std::less<>> tensors;
  std::string prefix_removed;   ///< what the file's names lack; empty: nothing
  std::string wrapper_removed;  ///< one that was there, for a message; empty: none

  /// The tensor of this name, or nullptr.
  const TensorView* find(std::string_view name) const;

  /// A model's name as the file has it, without wrappers.
  std::string file_name(const std::string& name) const;
};

/// @param source   of the weights, for messages
/// @param weights  must outlive the result
/// @throws DataError    if two tensors come to one name
/// @throws ConfigError  if the names are those of a LoRA adapter or of quantized weights
NamedWeights name_weights(const ModelWeights& weights,
                          const TensorNames& names,
                          const std::string& source);

/// Whether a tensor is a buffer that old files carry and that is no parameter: a mask, a table of
/// rotary frequencies.
bool is_buffer(std::string_view name);

}  // namespace t2r::model
