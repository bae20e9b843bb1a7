#pragma once

#include <string>

#include "launch/options/option_entry.h"

namespace t2r::launch {

/// What the arguments say besides the options of the command.
struct CommandLine {
  std::string config_file;
  bool wants_help = false, wants_dump = false;
};

/// Sorts the arguments behind a command's name into its options (on_command_line): --KEY VALUE,
/// --KEY=VALUE, --FLAG, --FLAG=false; lists take all up to the next option. Values are read later.
/// @throws UsageError  unknown option (with the nearest, or its name of today), value without an
///                     option, option without a value
CommandLine parse_command_line(const OptionTexts& arguments,
                               OptionEntries& entries,
                               const std::vector<RenamedOption>& renamed,
                               const std::string& command);

/// UsageError, with the line that names the command's help.
[[noreturn]] void refuse_command_line(const std::string& command, const std::string& what);

}  // namespace t2r::launch
