#include "launch/options/options.h"

#include <algorithm>
#include <iostream>
#include <numeric>
#include <utility>

#include "base/error.h"
#include "base/log.h"
#include "base/text.h"
#include "launch/options/command_line.h"
#include "launch/options/config_file.h"
#include "launch/options/option_entry.h"
#include "launch/options/option_value.h"

namespace t2r::launch {
namespace {

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

/// nullptr if an option may have a value of this type.
const char* type_wanted(const OptionEntry& entry, ConfigValue::Type type) {
  using Type = ConfigValue::Type;
  if (entry.is_flag) return type == Type::kBool ? nullptr : "true, false";
  if (type == Type::kText) return nullptr;
  if (entry.is_number) return type == Type::kNumber ? nullptr : "a number";
  return "a text, in quotes";
}

}  // namespace

std::string nearest(const std::string& word, const std::vector<std::string>& candidates) {
  std::string best;
  const auto length = static_cast<int64_t>(word.size());
  int64_t best_distance = std::min(std::max<int64_t>(2, length / 3), length - 1) + 1;
  for (const std::string& candidate : candidates) {
    const bool is_beginning = length >= 3 && candidate.starts_with(word);
    const int64_t distance = is_beginning ? 1 : edit_distance(word, candidate);
    if (distance < best_distance) {
      best_distance = distance;
      best = candidate;
    }
  }
  return best;
}

struct OptionSet::Implementation {
  std::string command, description;
  OptionEntries entries;
  std::vector<RenamedOption> renamed;
  CommandLine line;

  OptionEntry& at(const std::string& key) {
    OptionEntry* const entry = find_option(entries, key);
    require(entry != nullptr, concat("t2r ", command, " has no option ", key));
    return *entry;
  }

  bool has_table(const std::string& name) const {
    return std::any_of(entries.begin(), entries.end(), [&](const OptionEntry& entry) {
      return entry.key.starts_with(name + ".");
    });
  }

  void parse_file() {
    for (const auto& [key, value] : read_config_file(line.config_file)) {
      const std::string where = concat(line.config_file, ":", value.line, ": ");
      const bool is_table = value.type == ConfigValue::Type::kEmptyTable;
      if (is_table && has_table(key)) continue;
      OptionEntry* const entry = find_option(entries, key);
      const RenamedOption* const other = find_renamed(renamed, key);
      if (other != nullptr) throw ConfigError(where + other->refusal(""));
      if (entry == nullptr || is_table) {
        throw ConfigError(concat(where,
                                 is_table ? "unknown table \"" : "unknown key \"",
                                 key,
                                 "\"",
                                 suggested_option(entries, key, "")));
      }
      if (!entry->is_list && value.is_list)
        throw ConfigError(
            concat(where, key, " takes one value, not a list of ", value.texts.size()));
      const char* const wanted = type_wanted(*entry, value.type);
      if (wanted != nullptr && !value.texts.empty())
        throw ConfigError(where + not_allowed(key, joined(value.texts), wanted));
      entry->in_file = value;
    }
  }

  void assign_values() {
    for (OptionEntry& entry : entries) {
      const bool from_line = entry.on_command_line.has_value();
      if (!from_line && !entry.in_file.has_value()) continue;
      const OptionTexts& texts = from_line ? *entry.on_command_line : entry.in_file->texts;
      const std::string where =
          from_line ? "" : concat(line.config_file, ":", entry.in_file->line, ": ");
      const std::string allowed = entry.read(texts);
      if (!allowed.empty()) {
        const bool is_bare = entry.is_number || entry.is_flag;
        const std::string what =
            not_allowed(entry.key, is_bare ? joined(texts) : to_toml(joined(texts)), allowed);
        if (from_line && entry.choices.empty()) refuse_command_line(command, what);
        throw ConfigError(where + what);
      }
      const std::string beyond = entry.limits.empty() ? "" : entry.first_beyond();
      if (!beyond.empty()) throw ConfigError(where + not_allowed(entry.key, beyond, entry.limits));
    }
  }

  void check_dump_goes_back_in() {
    for (const OptionEntry& entry : entries) {
      if (is_utf8(entry)) continue;
      throw ConfigError(concat("--dump-config: ",
                               entry.key,
                               " = ",
                               entry.dump(),
                               " is not UTF-8, as a TOML file must be; leave it out here and give "
                               "it on the command line, or rename the file"));
    }
  }

  // A key and keys of the table of its name are two answers to one question.
  void check_exclusions() {
    for (const OptionEntry& entry : entries) {
      const std::string table = entry.key.substr(0, entry.key.find('.'));
      const OptionEntry* const whole = find_option(entries, table);
      if (whole == nullptr || whole == &entry || whole->is_empty() || !entry.is_asked_for())
        continue;
      throw ConfigError(concat("--",
                               table,
                               " and [",
                               table,
                               "] exclude each other: ",
                               table,
                               " = ",
                               whole->dump(),
                               " is there already, ",
                               entry.key,
                               " = ",
                               entry.dump(),
                               " describes another; give one of them"));
    }
  }
};

OptionSet::OptionSet(const std::string& command, const std::string& description)
    : implementation_(std::make_unique<Implementation>()) {
  implementation_->command = command;
  implementation_->description = description;
}

OptionSet::~OptionSet() = default;

OptionEntry& OptionSet::add_entry(const std::string& key, const std::string& help) {
  OptionEntry& entry = implementation_->entries.emplace_back();
  entry.key = key;
  entry.help = help;
  return entry;
}

template <class T>
OptionEntry& OptionSet::bind(const std::string& key, T& value, const std::string& help) {
  constexpr bool kIsText = std::is_same_v<T, std::string>;
  constexpr bool kIsList = !kIsText && requires {
    value.clear();
  };
  OptionEntry& entry = add_entry(key, help);
  entry.is_list = kIsList;
  entry.is_flag = std::is_same_v<T, bool>;
  entry.is_number = !kIsText && !entry.is_flag && !std::is_same_v<T, OptionTexts>;
  entry.dump = [&value] { return to_toml(value); };
  if constexpr (kIsText) {
    entry.fact = [&value] { return value; };
  } else {
    entry.fact = entry.dump;
  }
  entry.default_dump = entry.dump();
  if constexpr (kIsList) {
    entry.read = [&value](const OptionTexts& texts) { return read_value(texts, value); };
  } else {  // of several the last
    entry.read = [&value](const OptionTexts& texts) { return read_value(texts.back(), value); };
  }
  if constexpr (requires { value.empty(); }) {
    entry.is_empty = [&value] { return value.empty(); };
  } else {
    entry.is_empty = [] { return false; };
  }
  return entry;
}

Option OptionSet::add(const std::string& key, std::string& value, const std::string& help) {
  return Option(bind(key, value, help));
}
Option OptionSet::add(const std::string& key, bool& value, const std::string& help) {
  return Option(bind(key, value, help));
}
Option OptionSet::add(const std::string& key,
                      std::vector<std::string>& value,
                      const std::string& help) {
  return Option(bind(key, value, help));
}
NumberOption<int64_t> OptionSet::add(const std::string& key,
                                     int64_t& value,
                                     const std::string& help) {
  return {bind(key, value, help), [&value] { return std::vector<int64_t>{value}; }};
}
NumberOption<double> OptionSet::add(const std::string& key,
                                    double& value,
                                    const std::string& help) {
  OptionEntry& entry = bind(key, value, help);
  entry.fact = [&value] { return fact_text(value); };
  return {entry, [&value] { return std::vector<double>{value}; }};
}
NumberOption<int64_t> OptionSet::add(const std::string& key,
                                     std::vector<int64_t>& value,
                                     const std::string& help) {
  return {bind(key, value, help), [&value] { return value; }};
}

NumberOption<double> OptionSet::add_minutes(const std::string& key,
                                            double& minutes,
                                            const std::string& help) {
  NumberOption<double> option = add(key, minutes, help);
  implementation_->at(key).read = [&minutes](const OptionTexts& texts) {
    return read_minutes(texts.back(), minutes);
  };
  return option;
}

Option OptionSet::add_repeated(const std::string& key,
                               std::vector<std::string>& value,
                               const std::string& help) {
  OptionEntry& entry = bind(key, value, help);
  entry.takes_one = true;
  entry.read = [&value](const OptionTexts& texts) {
    value = texts;  // an empty text is one, too
    return "";
  };
  return Option(entry);
}

Option OptionSet::add_choice(const std::string& key,
                             std::string& value,
                             const std::vector<std::string>& allowed,
                             const std::string& help) {
  return add_named(key,
                   help,
                   {.names = allowed,
                    .read = [&value](const std::string& name) { value = name; },
                    .name = [&value] { return value; }});
}

Option OptionSet::add_named(const std::string& key,
                            const std::string& help,
                            const NamedAccess& access) {
  OptionEntry& entry = add_entry(key, help);
  entry.choices = access.names;
  entry.fact = access.name;
  entry.dump = [name = access.name] { return to_toml(name()); };
  entry.default_dump = entry.dump();
  entry.is_empty = [] { return false; };
  entry.read = [access](const OptionTexts& texts) -> std::string {
    const OptionTexts& names = access.names;
    if (std::find(names.begin(), names.end(), texts.back()) == names.end()) return joined(names);
    access.read(texts.back());
    return "";
  };
  return Option(entry);
}

void OptionSet::renamed(const std::string& key, const std::string& now, const std::string& why) {
  implementation_->renamed.push_back({key, now, why});
}

OptionSet::Outcome OptionSet::parse(const std::vector<std::string>& arguments) {
  Implementation& self = *implementation_;
  self.line = parse_command_line(arguments, self.entries, self.renamed, self.command);
  if (self.line.wants_help) {
    std::cout << help_of_options(self.entries, self.command, self.description);
    return Outcome::kDone;
  }
  if (!self.line.config_file.empty()) self.parse_file();
  self.assign_values();
  self.check_exclusions();
  if (self.line.wants_dump) {
    self.check_dump_goes_back_in();
    std::cout << dump();
    return Outcome::kDone;
  }
  for (const OptionEntry& entry : self.entries) {
    if (entry.is_required && entry.is_empty()) {
      throw UsageError(concat("--", entry.key, " is required (t2r ", self.command, " --help)"));
    }
  }
  return Outcome::kRun;
}

bool OptionSet::has(const std::string& key) const {
  return find_option(implementation_->entries, key) != nullptr;
}

bool OptionSet::was_given(const std::string& key) const {
  const OptionEntry& entry = implementation_->at(key);
  return entry.on_command_line.has_value() || entry.in_file.has_value();
}

void OptionSet::say_if_idle(const std::string& key, bool is_idle, const std::string& why) const {
  OptionEntry& entry = implementation_->at(key);
  if (!is_idle || !entry.is_asked_for() || std::exchange(entry.is_said, true)) return;
  log::warning_of_first_rank(concat("--", key, " has no effect: ", why));
}

std::vector<std::pair<std::string, std::string>> OptionSet::facts(OnResume kind) const {
  std::vector<std::pair<std::string, std::string>> found;
  for (const OptionEntry& entry : implementation_->entries) {
    if (entry.on_resume == kind) found.emplace_back(entry.key, entry.fact());
  }
  return found;
}

std::string OptionSet::dump() const {
  return toml_of_options(implementation_->entries);
}

}  // namespace t2r::launch
