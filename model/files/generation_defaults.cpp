#include "model/files/generation_defaults.h"

#include "base/durable_file.h"
#include "model/families/config_fields.h"

namespace t2r::model {
namespace {

template <class T>
std::optional<T> optional_field(const Fields& fields, const char* name) {
  if (!fields.has(name)) return std::nullopt;
  return fields.get<T>(name);
}

GenerationDefaults defaults_of(const DecoderConfig& config) {
  GenerationDefaults defaults;
  defaults.eos_token_ids = config.eos_token_ids;
  if (config.bos_token_id >= 0) defaults.bos_token_id = config.bos_token_id;
  return defaults;
}

}  // namespace

GenerationDefaults parse_generation_config(const std::string& json_text,
                                           const std::string& file,
                                           const DecoderConfig& config) {
  const nlohmann::ordered_json json = parse_json_object(json_text, file);
  const Fields fields(json, file);
  GenerationDefaults defaults = defaults_of(config);
  defaults.from_file = true;
  if (fields.has("eos_token_id")) defaults.eos_token_ids = fields.integers("eos_token_id");
  if (fields.has("bos_token_id")) defaults.bos_token_id = fields.get<int64_t>("bos_token_id");
  defaults.pad_token_id = optional_field<int64_t>(fields, "pad_token_id");
  defaults.do_sample = optional_field<bool>(fields, "do_sample");
  defaults.temperature = optional_field<double>(fields, "temperature");
  defaults.top_p = optional_field<double>(fields, "top_p");
  defaults.top_k = optional_field<int64_t>(fields, "top_k");
  defaults.repetition_penalty = optional_field<double>(fields, "repetition_penalty");
  return defaults;
}

GenerationDefaults read_generation_config(const std::filesystem::path& folder,
                                          const DecoderConfig& config) {
  const std::filesystem::path file = folder / kGenerationConfigFile;
  if (!std::filesystem::exists(file)) return defaults_of(config);
  return parse_generation_config(read_file(file), file.string(), config);
}

}  // namespace t2r::model
