#include "launch/options/config_file.h"

#include <toml++/toml.h>

#include <fstream>
#include <sstream>

#include "base/error.h"
#include "launch/options/option_value.h"

namespace t2r::launch {
namespace {

constexpr int64_t kMostBytes = 1 << 20;

using Values = std::map<std::string, ConfigValue>;

std::string read_text(const std::string& path) {
  std::ifstream in(path, std::ios::binary);
  std::string text(kMostBytes + 1, '\0');
  in.read(text.data(), static_cast<std::streamsize>(text.size()));
  if (!in.is_open() || in.bad() || (in.gcount() == 0 && !in.eof()))
    throw ConfigError(concat(path, ": cannot be read"));
  text.resize(static_cast<size_t>(in.gcount()));
  if (static_cast<int64_t>(text.size()) > kMostBytes)
    throw ConfigError(concat(path, ": is larger than 1 MiB, too large for a file of options"));
  return text;
}

/// Walks the tables of one file.
class Reader {
 public:
  explicit Reader(const std::string& path) : path_(path) {}

  void table(const toml::table& table, const std::string& prefix) {
    for (const auto& [name, child] : table) {
      const std::string key = prefix + std::string(name.str());
      const toml::table* const inner = child.as_table();
      if (inner != nullptr && !inner->empty()) {
        this->table(*inner, key + ".");
        continue;
      }
      if (values_.contains(key)) refuse(child, key, "is there twice");
      ConfigValue& value = values_[key];
      value.line = line_of(child);
      if (inner != nullptr) {
        value.type = ConfigValue::Type::kEmptyTable;
      } else if (const toml::array* const array = child.as_array()) {
        value.is_list = true;
        for (const toml::node& element : *array) add(element, key, value);
      } else {
        add(child, key, value);
      }
    }
  }

  Values take() { return std::move(values_); }

 private:
  static int64_t line_of(const toml::node& node) {
    return static_cast<int64_t>(node.source().begin.line);
  }

  [[noreturn]] void refuse(const toml::node& node, const std::string& key, const char* what) const {
    throw ConfigError(concat(path_, ":", line_of(node), ": ", key, " ", what));
  }

  void add(const toml::node& node, const std::string& key, ConfigValue& value) {
    if (node.is_table() || node.is_array()) refuse(node, key, "has a list or a table in a list");
    const ConfigValue::Type type = node.is_string()    ? ConfigValue::Type::kText
                                   : node.is_number()  ? ConfigValue::Type::kNumber
                                   : node.is_boolean() ? ConfigValue::Type::kBool
                                                       : ConfigValue::Type::kOther;
    if (!value.texts.empty() && value.type != type)
      refuse(node, key, "has elements of different types");
    value.type = type;
    if (const auto* const text = node.as_string()) {
      value.texts.push_back(text->get());
    } else if (const auto* const number = node.as_integer()) {
      if (number->flags() != toml::value_flags::none)  // 0x10, as on the command line
        refuse(
            node, key, "is not decimal, allowed: a decimal number, such as 500, 1e8 or \"100M\"");
      value.texts.push_back(to_toml(number->get()));
    } else if (const auto* const real = node.as_floating_point()) {
      value.texts.push_back(to_toml(real->get()));
    } else {
      std::ostringstream text_of;
      text_of << toml::node_view<const toml::node>(node);
      value.texts.push_back(text_of.str());
    }
  }

  const std::string& path_;
  Values values_;
};

}  // namespace

Values read_config_file(const std::string& path) {
  const std::string text = read_text(path);
  toml::table table;
  try {
    table = toml::parse(text, path);
  } catch (const toml::parse_error& error) {
    throw ConfigError(concat(path, ":", error.source().begin.line, ": ", error.description()));
  }
  Reader reader(path);
  reader.table(table, "");
  return reader.take();
}

}  // namespace t2r::launch
