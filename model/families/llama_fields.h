#pragma once

#include "model/config.h"
#include "model/families/config_fields.h"

namespace t2r::model {

/// What a config.json of Llama or of one of its relatives means where it leaves something out.
struct LlamaDefaults {
  int64_t num_kv_heads = 0;  ///< 0: as many as heads
  int64_t head_dim = 0;      ///< 0: the width over the heads
  int64_t max_positions = 2048;
  double norm_eps = 1e-6;
  double rope_theta = 10000.0;
};

/// Reads sizes, activation and rotation under the names that Llama and its relatives share.
/// @throws DataError, ConfigError  as Family::read
void read_llama_fields(const Fields& fields, const LlamaDefaults& defaults, DecoderConfig& config);

/// Reads attention_bias, of all four projections.
void read_attention_bias(const Fields& fields, DecoderConfig& config);

/// Writes what read_llama_fields() reads.
void write_llama_fields(const DecoderConfig& config, Fields::Json& json);

}  // namespace t2r::model
