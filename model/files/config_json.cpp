#include "model/files/config_json.h"

#include <algorithm>

#include "base/quoted_name.h"
#include "model/families/config_fields.h"
#include "model/families/families.h"
#include "model/families/family.h"
#include "model/families/unsupported_options.h"

namespace t2r::model {
namespace {

LinearAttentionConfig parse_linear(const Fields& fields) {
  LinearAttentionConfig linear;
  linear.feature_map = fields.get<std::string>("feature_map");
  linear.feature_size = fields.get<int64_t>("feature_size");
  linear.denominator_floor = fields.get_or("denominator_floor", linear.denominator_floor);
  linear.map_per_query_head = fields.get_or("map_per_query_head", false);
  linear.softmax_layers = fields.get_or("softmax_layers", std::vector<int64_t>{});
  std::ranges::sort(linear.softmax_layers);
  return linear;
}

/// model_type, and of a converted model that of the family it had.
const Family& family_in(const Fields& fields) {
  const auto type = fields.get<std::string>("model_type");
  std::string family = type;
  if (fields.has("t2r") || type == kT2rModelType) {
    const Fields section = fields.section("t2r");
    // Converted models of before keep the family's own name in model_type.
    family = type == kT2rModelType ? section.get<std::string>("base_model_type")
                                   : section.get_or("base_model_type", type);
    if (type != kT2rModelType && type != family)
      section.refuse("base_model_type", quoted_name(family), quoted_name(type));
  }
  return family_of(
      family,
      concat(fields.file(), ": ", type == kT2rModelType ? "t2r: base_model_type" : "model_type"));
}

}  // namespace

DecoderConfig parse_config(const std::string& json_text, const std::string& file) {
  const Fields::Json json = parse_json_object(json_text, file);
  const Fields fields(json, file);
  const Family& family = family_in(fields);
  refuse_unsupported_options(fields, family);
  DecoderConfig config = config_of(family.model_type);
  family.read(fields, config);
  config.tied_embeddings = fields.get_or("tie_word_embeddings", config.tied_embeddings);
  config.vocab_size = fields.get<int64_t>("vocab_size");
  config.initializer_range = fields.get_or("initializer_range", config.initializer_range);
  config.bos_token_id = std::max<int64_t>(fields.get_or<int64_t>("bos_token_id", -1), -1);
  config.eos_token_ids = fields.integers("eos_token_id");
  if (fields.has("t2r")) config.linear = parse_linear(fields.section("t2r"));
  try {
    config.validate();
  } catch (const ConfigError& error) {
    throw ConfigError(concat(file, ": ", error.what()));
  }
  return config;
}

}  // namespace t2r::model
