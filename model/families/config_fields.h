#pragma once

#include <cstdint>
#include <nlohmann/json.hpp>
#include <string>
#include <string_view>
#include <vector>

#include "base/error.h"

namespace t2r::model {

/// The object in a model folder's JSON file. Include from .cpp files only.
/// @param file  name for messages
/// @throws DataError  if the text is no JSON object; says what it is instead (a Git LFS pointer,
/// a web page), or names the byte
nlohmann::ordered_json parse_json_object(const std::string& text, const std::string& file);

/// A value from a file for a message: escaped, and cut where it is long.
std::string value_text(const nlohmann::ordered_json& value);

/// Typed access to the fields of an object, with errors that name file, field, value and type. A
/// field that is null counts as absent.
class Fields {
 public:
  using Json = nlohmann::ordered_json;

  /// `json` must outlive this.
  Fields(const Json& json, std::string file) : json_(json), file_(std::move(file)) {}

  bool has(const char* name) const;

  /// T: int64_t (32.0 is none), double, bool, std::string or std::vector<int64_t>.
  /// @throws DataError  if the field is absent or of another type
  template <class T>
  T get(const char* name) const {
    if (!has(name)) throw DataError(concat(file_, ": field \"", name, "\" is missing"));
    T value;
    if (const char* wanted = read(json_.at(name), value)) refuse_type(name, wanted);
    return value;
  }

  template <class T>
  T get_or(const char* name, T otherwise) const {
    return has(name) ? get<T>(name) : otherwise;
  }

  /// An integer, or a list of them.
  std::vector<int64_t> integers(const char* name) const;

  /// A number.
  /// @throws ConfigError  if it is not above 0
  double positive_or(const char* name, double otherwise) const;

  /// @throws ConfigError  always: file, field, what was found (by default its value), what is
  /// allowed
  [[noreturn]] void refuse(const char* name,
                           const std::string& found,
                           const std::string& allowed) const;
  [[noreturn]] void refuse(const char* name, const std::string& allowed) const;

  /// @throws DataError  if the field is there and no object
  Fields section(const char* name) const;

  const Json& json() const { return json_; }
  const std::string& file() const { return file_; }

 private:
  // What is wanted instead; nullptr if `value` could be read.
  static const char* read(const Json& json, int64_t& value);
  static const char* read(const Json& json, double& value);
  static const char* read(const Json& json, bool& value);
  static const char* read(const Json& json, std::string& value);
  static const char* read(const Json& json, std::vector<int64_t>& value);

  [[noreturn]] void refuse_type(const char* name, const char* wanted) const;

  const Json& json_;
  std::string file_;
};

}  // namespace t2r::model
