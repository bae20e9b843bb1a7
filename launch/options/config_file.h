#pragma once

#include <map>
#include <string>
#include <vector>

namespace t2r::launch {

/// What a TOML file says of one key, as text.
struct ConfigValue {
  enum class Type { kText, kNumber, kBool, kOther, kEmptyTable };
  std::vector<std::string> texts;
  Type type = Type::kText;  ///< of all elements
  bool is_list = false;
  int64_t line = 0;
};

/// A file's values by key; a key in a table is TABLE.KEY.
/// @throws ConfigError  naming file and line: not TOML, a key twice, lists within lists, tables
///                      within lists, a list whose elements differ in type, more than 1 MiB
std::map<std::string, ConfigValue> read_config_file(const std::string& path);

}  // namespace t2r::launch
