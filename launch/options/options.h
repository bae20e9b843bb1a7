#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "launch/options/option.h"
#include "launch/options/option_names.h"

namespace t2r::launch {

/// The options of one sub-command: each is a flag (--batch-size 8) and a key of a TOML file
/// (batch-size = 8). A key with a dot is a key in a table: --model.layers is layers in [model]. The
/// command line wins over the file, and of an option that is given twice the last; lists add up.
/// Values are read as option_value.h says, so 100M and 1e8 are whole numbers everywhere.
///
/// Every command also has --help, --config FILE and --dump-config, which prints the resolved
/// options as TOML.
class OptionSet {
 public:
  OptionSet(const std::string& command, const std::string& description);
  ~OptionSet();
  OptionSet(const OptionSet&) = delete;
  OptionSet& operator=(const OptionSet&) = delete;

  /// Binds a key to a variable, whose value is the default. What else is to be said of it (limits,
  /// whether a resumed run may change it) is said of what these return, there and then.
  Option add(const std::string& key, std::string& value, const std::string& help);
  Option add(const std::string& key, bool& value, const std::string& help);
  Option add(const std::string& key, std::vector<std::string>& value, const std::string& help);
  NumberOption<int64_t> add(const std::string& key, int64_t& value, const std::string& help);
  NumberOption<double> add(const std::string& key, double& value, const std::string& help);
  NumberOption<int64_t> add(const std::string& key,
                            std::vector<int64_t>& value,
                            const std::string& help);

  /// One of a type's values, by its name (OptionNames).
  template <NamedValue T>
  Option add(const std::string& key, T& value, const std::string& help) {
    return add_named(key,
                     help,
                     {.names = names_of_values<T>(),
                      .read = [&value](const std::string& name) { value = value_of_name<T>(name); },
                      .name = [&value] { return name_of(value); }});
  }

  /// A time in minutes, which may be given with its unit: 90s, 30m, 2h, 1h30m, 1d.
  NumberOption<double> add_minutes(const std::string& key,
                                   double& minutes,
                                   const std::string& help);

  /// A list to which each use of the flag adds one text, whatever is in it.
  Option add_repeated(const std::string& key,
                      std::vector<std::string>& value,
                      const std::string& help);

  /// A name of a registry whose entries the program does not know one by one (families, maps).
  Option add_choice(const std::string& key,
                    std::string& value,
                    const std::vector<std::string>& allowed,
                    const std::string& help);

  /// A key that users of other commands, or of before, know: it is refused with the name `now`.
  void renamed(const std::string& key, const std::string& now, const std::string& why);

  enum class Outcome { kRun, kDone };

  /// Reads the arguments and --config's file. kDone: --help or --dump-config was printed, nothing
  /// is left to do.
  /// @throws UsageError   unknown or malformed flag, missing required one; suggests the nearest
  /// @throws ConfigError  unknown key or value in the file, value that is not allowed (its names,
  ///                      its limits), a key beside keys of the table of its name (--model with
  ///                      --model.layers)
  Outcome parse(const std::vector<std::string>& arguments);

  /// Whether this command has the option. Local.
  bool has(const std::string& key) const;

  /// Whether the key stands on the command line or in --config's file.
  /// @throws ContractError  if there is no such key
  bool was_given(const std::string& key) const;

  /// Warns once, on rank 0, that an option has no effect: "--KEY has no effect: WHY". An option at
  /// its default, and not on the command line, is nothing that a user asked for: no warning. Call
  /// it behind BackendOptions::resolve(), which may start the command anew. Local.
  /// @throws ContractError  if there is no such key
  void say_if_idle(const std::string& key, bool is_idle, const std::string& why) const;

  /// Key and value of the options that a resumed run must share with its checkpoint, or that it may
  /// change, which is said; in the order in which they were added.
  std::vector<std::pair<std::string, std::string>> facts(OnResume kind) const;

  /// The resolved options as TOML, each below its help. Keys without a value, and a table whose
  /// keys are all at their defaults where a key has its name, are comments. So are values that are
  /// not UTF-8, which no TOML file can hold: --dump-config refuses them.
  std::string dump() const;

 private:
  struct Implementation;
  struct NamedAccess {
    std::vector<std::string> names;
    std::function<void(const std::string&)> read;
    std::function<std::string()> name;
  };

  OptionEntry& add_entry(const std::string& key, const std::string& help);
  Option add_named(const std::string& key, const std::string& help, const NamedAccess& access);
  template <class T>
  OptionEntry& bind(const std::string& key, T& value, const std::string& help);

  std::unique_ptr<Implementation> implementation_;
};

/// The candidate that is the fewest edits away from `word`, or begins with it; "" if none is near.
std::string nearest(const std::string& word, const std::vector<std::string>& candidates);

}  // namespace t2r::launch
