#include "launch/options.h"

#include <toml++/toml.h>
#include <CLI/CLI.hpp>

#include <algorithm>
#include <cmath>
#include <filesystem>
#include <iostream>
#include <map>
#include <numeric>

#include "base/error.h"
#include "base/log.h"

namespace t2r::launch {
namespace {

std::string to_toml(const std::string& value) {
  std::ostringstream out;
  out << toml::value<std::string>(value);
  return out.str();
}
std::string to_toml(int64_t value) {
  return std::to_string(value);
}
std::string to_toml(bool value) {
  return value ? "true" : "false";
}
std::string to_toml(double value) {
  std::ostringstream out;
  out.precision(17);
  for (int digits = 1; digits <= 17;
       ++digits) {  // the shortest text that reads back as the same number
    std::ostringstream attempt;
    attempt.precision(digits);
    attempt << value;
    if (std::stod(attempt.str()) == value) {
      out << attempt.str();
      break;
    }
  }
  const std::string text = out.str();
  return text.find_first_of(".en") == std::string::npos ? text + ".0" : text;
}
template <class T>
std::string to_toml(const std::vector<T>& values) {
  std::string text = "[";
  for (size_t i = 0; i < values.size(); ++i) text += (i == 0 ? "" : ", ") + to_toml(values[i]);
  return text + "]";
}

int64_t edit_distance(const std::string& a, const std::string& b) {
  std::vector<int64_t> row(b.size() + 1);
  std::iota(row.begin(), row.end(), 0);
  for (size_t i = 1; i <= a.size(); ++i) {
    int64_t diagonal = std::exchange(row[0], static_cast<int64_t>(i));
    for (size_t j = 1; j <= b.size(); ++j) {
      const int64_t substituted = diagonal + (a[i - 1] == b[j - 1] ? 0 : 1);
      diagonal = std::exchange(row[j], std::min({row[j] + 1, row[j - 1] + 1, substituted}));
    }
  }
  return row.back();
}

std::string suggestion(const std::string& word,
                       const std::vector<std::string>& candidates,
                       const char* dashes) {
  const std::string near = nearest(word, candidates);
  return near.empty() ? "" : concat("; did you mean ", dashes, near, "?");
}

// "--key=value" arguments of one node of the file.
void flatten(const toml::node& node,
             const std::string& key,
             std::map<std::string, std::vector<std::string>>& out) {
  if (const toml::table* table = node.as_table()) {
    for (const auto& [name, child] : *table) {
      flatten(
          child, key.empty() ? std::string(name.str()) : key + "." + std::string(name.str()), out);
    }
  } else if (const toml::array* array = node.as_array()) {
    out[key];
    for (const toml::node& child : *array) flatten(child, key, out);
  } else {
    std::ostringstream text;
    if (const auto* value = node.as_string()) {
      text << value->get();
    } else {
      text << toml::node_view<const toml::node>(node);
    }
    out[key].push_back(text.str());
  }
}

}  // namespace

std::string nearest(const std::string& word, const std::vector<std::string>& candidates) {
  std::string best;
  int64_t best_distance = std::max<int64_t>(2, static_cast<int64_t>(word.size()) / 3) + 1;
  for (const std::string& candidate : candidates) {
    const int64_t distance = edit_distance(word, candidate);
    if (distance < best_distance) {
      best_distance = distance;
      best = candidate;
    }
  }
  return best;
}

struct OptionSet::Implementation {
  struct Entry {
    std::string key;
    std::function<std::string()> dump;
    std::function<void()> check;  ///< of the value; throws ConfigError
    bool is_required = false;
    bool is_list = false;
    std::function<bool()> is_empty;
    std::function<void()> clear;
    std::string default_dump;
    bool is_on_command_line = false;
    bool is_in_file = false;
    bool is_said = false;  ///< that it is idle
  };

  CLI::App app;
  std::string command;
  std::vector<Entry> entries;
  std::string config_file;
  bool dumps = false;

  std::vector<std::string> keys() const {
    std::vector<std::string> result{"config", "dump-config", "help"};
    for (const Entry& entry : entries) result.push_back(entry.key);
    return result;
  }

  Entry* find(const std::string& key) {
    const auto found =
        std::find_if(entries.begin(), entries.end(), [&](const Entry& e) { return e.key == key; });
    return found == entries.end() ? nullptr : &*found;
  }

  Entry& at(const std::string& key) {
    Entry* const entry = find(key);
    require(entry != nullptr, concat("t2r ", command, " has no option ", key));
    return *entry;
  }

  void parse_arguments(std::vector<std::string> arguments,
                       const std::string& source,
                       bool is_file) {
    std::reverse(arguments.begin(), arguments.end());  // CLI11 takes them from the back
    try {
      app.parse(arguments);
    } catch (const CLI::CallForHelp&) {
      throw;
    } catch (const CLI::ParseError& error) {
      const std::string message = concat(source, ": ", error.what());
      if (is_file) throw ConfigError(message);
      throw UsageError(message);
    }
    for (const std::string& extra : app.remaining()) {
      const std::string word = extra.substr(
          extra.find_first_not_of('-') == std::string::npos ? 0 : extra.find_first_not_of('-'));
      const std::string name = word.substr(0, word.find('='));
      throw UsageError(concat(source,
                              ": unknown argument \"",
                              extra,
                              "\"",
                              suggestion(name, keys(), "--"),
                              " (t2r ",
                              command,
                              " --help lists all)"));
    }
  }

  void parse_file() {
    toml::table table;
    try {
      table = toml::parse_file(config_file);
    } catch (const toml::parse_error& error) {
      throw ConfigError(
          concat(config_file, ":", error.source().begin.line, ": ", error.description()));
    }
    std::map<std::string, std::vector<std::string>> values;
    flatten(table, "", values);
    std::vector<std::string> arguments;
    for (const auto& [key, texts] : values) {
      Entry* const entry = find(key);
      if (entry == nullptr) {
        throw ConfigError(
            concat(config_file, ": unknown key \"", key, "\"", suggestion(key, keys(), "")));
      }
      if (!entry->is_list && texts.size() != 1) {
        throw ConfigError(
            concat(config_file, ": ", key, " takes one value, not a list of ", texts.size()));
      }
      entry->is_in_file = true;
      if (texts.empty() || (texts.size() == 1 && texts[0].empty() && entry->clear)) {
        entry->clear();  // CLI11 would take the next argument for an empty value
        continue;
      }
      for (const std::string& text : texts) arguments.push_back(concat("--", key, "=", text));
    }
    parse_arguments(arguments, config_file, true);
  }
};

OptionSet::OptionSet(const std::string& command, const std::string& description)
    : implementation_(std::make_unique<Implementation>()) {
  implementation_->command = command;
  CLI::App& app = implementation_->app;
  app.name("t2r " + command);
  app.description(description);
  app.allow_extras();
  app.add_option(
         "--config", implementation_->config_file, "TOML file with any of these options as keys")
      ->check(CLI::ExistingFile);
  app.add_flag(
      "--dump-config", implementation_->dumps, "print the resolved options as TOML and stop");
  app.get_formatter()->column_width(36);
}

OptionSet::~OptionSet() = default;

template <class T>
void OptionSet::bind(const std::string& key, T& value, const std::string& help) {
  constexpr bool kIsList = !std::is_same_v<T, std::string> && requires {
    value.clear();
  };
  Implementation::Entry entry;
  entry.key = key;
  entry.is_list = kIsList;
  entry.dump = [&value] { return to_toml(value); };
  entry.default_dump = entry.dump();
  if constexpr (std::is_same_v<T, bool>) {
    implementation_->app.add_flag("--" + key, value, help + (value ? " [default: true]" : ""));
  } else {
    CLI::Option* option = implementation_->app.add_option("--" + key, value, help);
    option->capture_default_str()->type_name("");
    if constexpr (!kIsList) option->multi_option_policy(CLI::MultiOptionPolicy::TakeLast);
  }
  if constexpr (requires { value.clear(); }) {
    entry.is_empty = [&value] { return value.empty(); };
    entry.clear = [&value] { value.clear(); };
  }
  implementation_->entries.push_back(std::move(entry));
}

void OptionSet::add(const std::string& key, std::string& value, const std::string& help) {
  bind(key, value, help);
}
void OptionSet::add(const std::string& key, int64_t& value, const std::string& help) {
  bind(key, value, help);
}
void OptionSet::add(const std::string& key, double& value, const std::string& help) {
  bind(key, value, help);
}
void OptionSet::add(const std::string& key, bool& value, const std::string& help) {
  bind(key, value, help);
}
void OptionSet::add(const std::string& key,
                    std::vector<std::string>& value,
                    const std::string& help) {
  bind(key, value, help);
}
void OptionSet::add(const std::string& key, std::vector<int64_t>& value, const std::string& help) {
  bind(key, value, help);
}

void OptionSet::add_choice(const std::string& key,
                           std::string& value,
                           const std::vector<std::string>& allowed,
                           const std::string& help) {
  std::string list;
  for (const std::string& name : allowed) list += (list.empty() ? "" : ", ") + name;
  bind(key, value, help + ": " + list);
  implementation_->entries.back().check = [&value, key, allowed, list] {
    if (std::find(allowed.begin(), allowed.end(), value) == allowed.end()) {
      throw ConfigError(concat(key, " = \"", value, "\", allowed: ", list));
    }
  };
}

void OptionSet::add_required(const std::string& key, std::string& value, const std::string& help) {
  bind(key, value, help + " (required)");
  implementation_->entries.back().is_required = true;
}

OptionSet::Outcome OptionSet::parse(const std::vector<std::string>& arguments) {
  Implementation& self = *implementation_;
  try {
    self.parse_arguments(arguments, "command line", false);
    for (Implementation::Entry& entry : self.entries)
      entry.is_on_command_line = self.app.count("--" + entry.key) > 0;
    if (!self.config_file.empty()) {
      self.parse_file();
      self.parse_arguments(arguments, "command line", false);  // once more, over the file's values
    }
  } catch (const CLI::CallForHelp&) {
    std::cout << self.app.help();
    return Outcome::kDone;
  }
  for (const Implementation::Entry& entry : self.entries) {
    if (entry.check) entry.check();
  }
  if (self.dumps) {
    std::cout << dump();
    return Outcome::kDone;
  }
  for (const Implementation::Entry& entry : self.entries) {
    if (entry.is_required && entry.is_empty()) {
      throw UsageError(concat("--", entry.key, " is required (t2r ", self.command, " --help)"));
    }
  }
  return Outcome::kRun;
}

bool OptionSet::was_given(const std::string& key) const {
  const Implementation::Entry& entry = implementation_->at(key);
  return entry.is_on_command_line || entry.is_in_file;
}

void OptionSet::say_if_idle(const std::string& key, bool is_idle, const std::string& why) const {
  Implementation::Entry& entry = implementation_->at(key);
  const bool is_asked_for =
      entry.is_on_command_line || (entry.is_in_file && entry.dump() != entry.default_dump);
  if (!is_idle || !is_asked_for || std::exchange(entry.is_said, true)) return;
  log::warning_of_first_rank(concat("--", key, " has no effect: ", why));
}

std::string OptionSet::dump() const {
  std::string top;
  std::map<std::string, std::string> tables;
  for (const Implementation::Entry& entry : implementation_->entries) {
    const size_t dot = entry.key.find('.');
    if (dot != std::string::npos) {
      tables[entry.key.substr(0, dot)] +=
          concat(entry.key.substr(dot + 1), " = ", entry.dump(), "\n");
    }
  }
  for (const Implementation::Entry& entry : implementation_->entries) {
    if (entry.key.find('.') != std::string::npos) continue;
    // TOML has one value per name: a key that shares its name with a table is written instead of it
    // if it is set.
    if (tables.contains(entry.key)) {
      if (entry.is_empty()) continue;
      tables.erase(entry.key);
    }
    top += concat(entry.key, " = ", entry.dump(), "\n");
  }
  for (const auto& [name, body] : tables) top += concat("\n[", name, "]\n", body);
  return top;
}

void check_at_least(const char* key, int64_t value, int64_t least) {
  if (value < least) throw ConfigError(concat(key, " = ", value, ", allowed: ", least, " or more"));
}

}  // namespace t2r::launch
