#include "model/families/families.h"

#include <algorithm>

#include "base/quoted_name.h"
#include "base/text.h"
#include "model/families/family.h"

namespace t2r::model {
namespace {

/// One line a family.
constexpr std::array kFamilies = {
    &kGpt2,
    &kLlama,
    &kMistral,
    &kOlmo2,
    &kQwen2,
    &kQwen3,
    &kSmolLM3,
    &kStarcoder2,
};

}  // namespace

const std::vector<std::string>& family_names() {
  static const std::vector<std::string> names = [] {
    std::vector<std::string> all;
    for (const Family* family : kFamilies) all.emplace_back(family->model_type);
    return all;
  }();
  return names;
}

const Family& family_of(const std::string& model_type, const std::string& field) {
  const auto found = std::ranges::find_if(
      kFamilies, [&](const Family* family) { return family->model_type == model_type; });
  if (found != kFamilies.end()) return **found;
  throw ConfigError(
      concat(field, " = ", quoted_name(model_type), ", allowed: ", joined(family_names())));
}

DecoderConfig config_of(const std::string& family, int64_t num_layers) {
  DecoderConfig config;
  config.family = family;
  config.num_layers = num_layers;
  family_of(family, "family").describe(config);
  return config;
}

}  // namespace t2r::model
