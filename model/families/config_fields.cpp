#include "model/families/config_fields.h"

#include <limits>

#include "base/json.h"
#include "base/quoted_name.h"

namespace t2r::model {
namespace {

constexpr size_t kMaxValueBytes = 120;

}  // namespace

nlohmann::ordered_json parse_json_object(const std::string& text, const std::string& file) {
  nlohmann::ordered_json json = parse_json(text, file);
  if (!json.is_object()) throw DataError(concat(file, ": not a JSON object"));
  return json;
}

std::string value_text(const nlohmann::ordered_json& value) {
  if (value.is_string()) return quoted_name(value.get_ref<const std::string&>());
  std::string text = value.dump(-1, ' ', true, nlohmann::ordered_json::error_handler_t::replace);
  if (text.size() > kMaxValueBytes) text = text.substr(0, kMaxValueBytes) + "...";
  return text;
}

bool Fields::has(const char* name) const {
  const auto found = json_.find(name);
  return found != json_.end() && !found->is_null();
}

std::vector<int64_t> Fields::integers(const char* name) const {
  if (!has(name)) return {};
  if (json_.at(name).is_array()) return get<std::vector<int64_t>>(name);
  if (!json_.at(name).is_number()) refuse_type(name, "an integer or a list of integers");
  return {get<int64_t>(name)};
}

double Fields::positive_or(const char* name, double otherwise) const {
  const double value = get_or(name, otherwise);
  if (!(value > 0.0)) refuse(name, "above 0");
  return value;
}

void Fields::refuse(const char* name, const std::string& found, const std::string& allowed) const {
  throw ConfigError(concat(file_, ": ", name, " = ", found, ", allowed: ", allowed));
}

void Fields::refuse(const char* name, const std::string& allowed) const {
  refuse(name, json_.contains(name) ? value_text(json_.at(name)) : "absent", allowed);
}

Fields Fields::section(const char* name) const {
  if (!has(name) || !json_.at(name).is_object()) refuse_type(name, "an object");
  return Fields(json_.at(name), concat(file_, ": ", name));
}

const char* Fields::read(const Json& json, int64_t& value) {
  if (!json.is_number_integer()) return "an integer";
  constexpr auto kLargest = static_cast<uint64_t>(std::numeric_limits<int64_t>::max());
  if (json.is_number_unsigned() && json.get<uint64_t>() > kLargest) return "an integer below 2^63";
  value = json.get<int64_t>();
  return nullptr;
}

const char* Fields::read(const Json& json, double& value) {
  if (!json.is_number()) return "a number";
  value = json.get<double>();
  return nullptr;
}

const char* Fields::read(const Json& json, bool& value) {
  if (!json.is_boolean()) return "true or false";
  value = json.get<bool>();
  return nullptr;
}

const char* Fields::read(const Json& json, std::string& value) {
  if (!json.is_string()) return "a string";
  value = json.get<std::string>();
  return nullptr;
}

const char* Fields::read(const Json& json, std::vector<int64_t>& value) {
  if (!json.is_array()) return "a list of integers";
  value.clear();
  for (const Json& element : json) {
    if (read(element, value.emplace_back()) != nullptr) return "a list of integers";
  }
  return nullptr;
}

void Fields::refuse_type(const char* name, const char* wanted) const {
  const std::string found = json_.contains(name) ? value_text(json_.at(name)) : "null";
  throw DataError(
      concat(file_, ": field \"", name, "\" has the wrong type: ", found, ", wanted ", wanted));
}

}  // namespace t2r::model
