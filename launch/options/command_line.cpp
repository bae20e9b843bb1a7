#include "launch/options/command_line.h"

#include <algorithm>

#include "base/error.h"
#include "launch/options/option_value.h"

namespace t2r::launch {
namespace {

// KEY of --KEY and --KEY=VALUE, "" of anything else.
std::string key_of(const std::string& argument) {
  return argument.starts_with("--") ? argument.substr(2, argument.find('=') - 2) : "";
}

/// Walks the arguments once.
class ArgumentReader {
 public:
  ArgumentReader(const OptionTexts& arguments,
                 OptionEntries& entries,
                 const std::vector<RenamedOption>& renamed,
                 const std::string& command)
      : arguments_(arguments), entries_(entries), renamed_(renamed), command_(command) {}

  CommandLine read() {
    while (at_ < arguments_.size()) {
      const std::string& argument = arguments_[at_];
      if (!is_option(argument)) refuse_unknown(argument);
      const std::string key = argument == "-h" ? "help" : key_of(argument);
      if (key == "config") {
        result_.config_file = take_values(false, false)[0];
        if (result_.config_file.empty()) refuse("--config has no value");
      } else if (key == "dump-config" || key == "help") {
        bool& is_wanted = key == "help" ? result_.wants_help : result_.wants_dump;
        if (!read_value(take_values(true, false)[0], is_wanted).empty())
          refuse(concat(argument, ", allowed: true, false"));
      } else {
        take_option(*find_option(entries_, key));
      }
    }
    return result_;
  }

 private:
  [[noreturn]] void refuse(const std::string& what) const { refuse_command_line(command_, what); }

  bool is_option(const std::string& argument) const {
    const std::string key = key_of(argument);
    return argument == "-h" || key == "help" || key == "config" || key == "dump-config" ||
           find_option(entries_, key) != nullptr;
  }

  void take_option(OptionEntry& entry) {
    last_ = &entry;
    const OptionTexts values = take_values(entry.is_flag, entry.is_list && !entry.takes_one);
    if (!entry.is_list || !entry.on_command_line.has_value()) {
      entry.on_command_line = values;
    } else {
      entry.on_command_line->insert(entry.on_command_line->end(), values.begin(), values.end());
    }
  }

  // The values of the option that arguments_[at_] names; moves behind them.
  OptionTexts take_values(bool is_flag, bool is_list) {
    const std::string& argument = arguments_[at_++];
    const size_t equals = argument.find('=');
    OptionTexts values;
    if (equals != std::string::npos) values.push_back(argument.substr(equals + 1));
    if (is_flag) return values.empty() ? OptionTexts{"true"} : values;
    while (at_ < arguments_.size() && (values.empty() || is_list) && !is_option(arguments_[at_])) {
      if (is_list && arguments_[at_].starts_with("--")) break;  // an option that is misspelled
      values.push_back(arguments_[at_++]);
    }
    if (!values.empty()) return values;
    if (at_ == arguments_.size()) refuse(concat(argument, " has no value"));
    refuse(concat(argument,
                  " has no value: the next argument is ",
                  arguments_[at_],
                  "; ",
                  argument,
                  "=",
                  arguments_[at_],
                  " would take it as one"));
  }

  [[noreturn]] void refuse_unknown(const std::string& argument) const {
    const RenamedOption* const renamed = find_renamed(renamed_, key_of(argument));
    if (renamed != nullptr) refuse(renamed->refusal("--"));
    const std::string unknown = concat("unknown argument \"", argument, "\"");
    if (argument.starts_with('-')) {
      std::string word = argument.substr(0, argument.find('='));
      word.erase(0, std::min(word.find_first_not_of('-'), word.size()));
      refuse(unknown + suggested_option(entries_, word, "--"));
    }
    if (last_ == nullptr || !last_->is_flag)
      refuse(unknown + "; a value stands behind the name of its option");
    const std::string& key = last_->key;
    refuse(concat(unknown, "; a value of --", key, " is written --", key, "=", argument));
  }

  const OptionTexts& arguments_;
  OptionEntries& entries_;
  const std::vector<RenamedOption>& renamed_;
  const std::string& command_;
  size_t at_ = 0;
  const OptionEntry* last_ = nullptr;
  CommandLine result_;
};

}  // namespace

CommandLine parse_command_line(const OptionTexts& arguments,
                               OptionEntries& entries,
                               const std::vector<RenamedOption>& renamed,
                               const std::string& command) {
  return ArgumentReader(arguments, entries, renamed, command).read();
}

void refuse_command_line(const std::string& command, const std::string& what) {
  throw UsageError(concat("command line: ", what, " (t2r ", command, " --help lists all)"));
}

}  // namespace t2r::launch
