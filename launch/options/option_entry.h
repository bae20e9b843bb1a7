#pragma once

#include <deque>
#include <functional>
#include <optional>
#include <string>
#include <vector>

#include "launch/options/config_file.h"
#include "launch/options/option.h"

namespace t2r::launch {

using OptionTexts = std::vector<std::string>;

/// One option of an OptionSet: how its value is read and written, and where it was given.
struct OptionEntry {
  std::string key, help, default_dump;
  bool is_flag = false, is_list = false, is_number = false, is_required = false;
  bool takes_one = false;  ///< of a list: each use of the flag adds one value
  OptionTexts choices;     ///< none: any
  std::function<std::string(const OptionTexts&)> read;  ///< "", or what would be allowed
  std::function<std::string()> dump;
  std::function<bool()> is_empty;  ///< never of numbers and flags

  std::string limits;                         ///< of a number, "": none
  std::function<std::string()> first_beyond;  ///< the first value that is not within them, or ""

  OnResume on_resume = OnResume::kFree;
  std::function<std::string()> fact;  ///< the value as a checkpoint knows it

  std::optional<OptionTexts> on_command_line;
  std::optional<ConfigValue> in_file;
  bool is_said = false;  ///< that it is idle

  bool is_default() const { return dump() == default_dump; }

  /// On the command line, or in the file with another value than the default.
  bool is_asked_for() const {
    return on_command_line.has_value() || (in_file.has_value() && !is_default());
  }
};

using OptionEntries = std::deque<OptionEntry>;  // entries stay where they are

/// A name that an option once had, or has on another command alone.
struct RenamedOption {
  std::string key, now, why;

  /// "DASHESkey is DASHESnow here: why".
  std::string refusal(const char* dashes) const;
};

/// The entry of a name, nullptr if there is none.
const RenamedOption* find_renamed(const std::vector<RenamedOption>& renamed,
                                  const std::string& key);

/// The entry of a key, nullptr if there is none.
OptionEntry* find_option(OptionEntries& entries, const std::string& key);

/// "; did you mean DASHES...?" of the key that is nearest to `word`, or "".
std::string suggested_option(const OptionEntries& entries,
                             const std::string& word,
                             const char* dashes);

/// What --help prints of a command.
std::string help_of_options(const OptionEntries& entries,
                            const std::string& command,
                            const std::string& description);

/// Whether the entry's value can stand in a TOML file, which is UTF-8; a path may be any bytes.
bool is_utf8(const OptionEntry& entry);

/// See OptionSet::dump().
std::string toml_of_options(const OptionEntries& entries);

}  // namespace t2r::launch
