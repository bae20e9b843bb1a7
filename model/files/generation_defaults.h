#pragma once

#include <cstdint>
#include <filesystem>
#include <optional>
#include <string>
#include <vector>

#include "model/config.h"

namespace t2r::model {

inline constexpr const char* kGenerationConfigFile = "generation_config.json";

/// How a model folder asks to be generated from: generation_config.json over config.json, as in
/// transformers. A sampling option is empty where no file says it.
struct GenerationDefaults {
  std::vector<int64_t> eos_token_ids;  ///< each ends a text; may lie outside the vocabulary
  std::optional<int64_t> bos_token_id, pad_token_id;
  std::optional<bool> do_sample;
  std::optional<double> temperature, top_p, repetition_penalty;
  std::optional<int64_t> top_k;
  bool from_file = false;  ///< there is a generation_config.json
};

/// Reads a generation_config.json: what it leaves out, or has as null, comes from `config`.
/// @param file  name for messages
/// @throws DataError  if it is not JSON or a field has the wrong type; names file and field
GenerationDefaults parse_generation_config(const std::string& json,
                                           const std::string& file,
                                           const DecoderConfig& config);

/// The same for a model folder, which need not have the file.
GenerationDefaults read_generation_config(const std::filesystem::path& folder,
                                          const DecoderConfig& config);

}  // namespace t2r::model
