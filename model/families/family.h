#pragma once

#include <array>
#include <string>
#include <vector>

#include "model/config.h"
#include "model/families/config_fields.h"

namespace t2r::model {

/// How a config.json says which layers look back over a window only. t2r has no windows: one that
/// is shorter than the trained context is refused.
struct WindowFields {
  bool has_switch = true;           ///< use_sliding_window turns it on and off
  bool is_on = true;                ///< where use_sliding_window is absent
  int64_t otherwise = 0;            ///< where sliding_window is absent; 0: none
  bool has_first_layer = false;     ///< layers before max_window_layers see everything
  int64_t first_layer = 0;          ///< where max_window_layers is absent
  bool layer_types_decide = false;  ///< layer_types, where it is there, stands above the rest
};

/// A family of decoders, one of the Hugging Face model types: what its config.json means. Include
/// from .cpp files only, as config_fields.h.
struct Family {
  const char* model_type;
  const char* architecture;  ///< the class of transformers

  /// Sets the block, the names and the defaults of a model of this family.
  void (*describe)(DecoderConfig& config);

  /// Reads sizes and options of a described config.
  /// @throws DataError, ConfigError  as parse_config() (model/files/config_json.h)
  void (*read)(const Fields& fields, DecoderConfig& config);

  /// Writes what read() reads.
  void (*write)(const DecoderConfig& config, Fields::Json& json);

  WindowFields window = {};

  /// Options which no other family has, and which read() reads.
  std::array<const char*, 2> own_options = {};
};

extern const Family kGpt2;
extern const Family kLlama;
extern const Family kMistral;
extern const Family kOlmo2;
extern const Family kQwen2;
extern const Family kQwen3;
extern const Family kSmolLM3;
extern const Family kStarcoder2;

/// @throws ConfigError  if there is none of this name; says `field` and which there are
const Family& family_of(const std::string& model_type, const std::string& field);

}  // namespace t2r::model
