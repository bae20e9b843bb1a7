#include "launch/options/option_entry.h"

#include <algorithm>
#include <map>
#include <sstream>

#include "base/error.h"
#include "base/text.h"
#include "data/unicode/utf8.h"
#include "launch/options/options.h"

namespace t2r::launch {
namespace {

constexpr size_t kHelpColumn = 34;
constexpr size_t kLineWidth = 100;

/// `text` in lines of at most kLineWidth, each behind `prefix`.
std::string wrapped(const std::string& prefix, const std::string& text) {
  std::string all, line = prefix;
  std::istringstream words(text);
  for (std::string word; words >> word;) {
    if (line.size() > prefix.size() && line.size() + 1 + word.size() > kLineWidth) {
      all += line + "\n";
      line = prefix;
    }
    line += (line.size() > prefix.size() ? " " : "") + word;
  }
  return all + line + "\n";
}

std::string help_with_choices(const OptionEntry& entry) {
  return entry.choices.empty() ? entry.help : concat(entry.help, ": ", joined(entry.choices));
}

/// `text` with each byte beyond ASCII as \xNN.
std::string escaped_bytes(const std::string& text) {
  constexpr char kDigits[] = "0123456789abcdef";
  std::string escaped;
  for (const char c : text) {
    const auto byte = static_cast<unsigned char>(c);
    if (byte < 0x80) {
      escaped += c;
    } else {
      escaped += {'\\', 'x', kDigits[byte >> 4], kDigits[byte & 15]};
    }
  }
  return escaped;
}

void add_help_line(std::string& text, const std::string& name, const std::string& help) {
  std::string lines = wrapped(std::string(kHelpColumn, ' '), help);
  if (name.size() + 2 <= kHelpColumn) {
    lines.replace(0, name.size(), name);
  } else {
    lines = name + "\n" + lines;
  }
  text += lines;
}

}  // namespace

std::string RenamedOption::refusal(const char* dashes) const {
  return concat(dashes, key, " is ", dashes, now, " here: ", why);
}

const RenamedOption* find_renamed(const std::vector<RenamedOption>& renamed,
                                  const std::string& key) {
  const auto found =
      std::find_if(renamed.begin(), renamed.end(), [&](const auto& one) { return one.key == key; });
  return found == renamed.end() ? nullptr : &*found;
}

OptionEntry* find_option(OptionEntries& entries, const std::string& key) {
  const auto found = std::find_if(
      entries.begin(), entries.end(), [&](const OptionEntry& entry) { return entry.key == key; });
  return found == entries.end() ? nullptr : &*found;
}

std::string suggested_option(const OptionEntries& entries,
                             const std::string& word,
                             const char* dashes) {
  OptionTexts keys;
  if (*dashes != '\0') keys = {"config", "dump-config", "help"};  // which no file has
  for (const OptionEntry& entry : entries) keys.push_back(entry.key);
  const std::string near = nearest(word, keys);
  return near.empty() ? "" : concat("; did you mean ", dashes, near, "?");
}

std::string help_of_options(const OptionEntries& entries,
                            const std::string& command,
                            const std::string& description) {
  std::string text = concat(wrapped("", description), "\nusage: t2r ", command, " [options]\n\n");
  add_help_line(text, "  --help, -h", "print this and stop");
  add_help_line(text,
                "  --config FILE",
                "TOML file with any of these options as keys; the command line wins");
  add_help_line(text, "  --dump-config", "print the resolved options as TOML and stop");
  for (const OptionEntry& entry : entries) {
    const bool has_default = !entry.is_empty() && (!entry.is_flag || entry.dump() == "true");
    add_help_line(text,
                  concat("  --", entry.key, entry.is_list ? " ..." : ""),
                  concat(help_with_choices(entry),
                         entry.is_required ? " (required)" : "",
                         has_default ? concat(" [default: ", entry.dump(), "]") : "",
                         entry.limits.empty() ? "" : concat(" [allowed: ", entry.limits, "]")));
  }
  return text;
}

bool is_utf8(const OptionEntry& entry) {
  const std::string text = entry.dump();
  return data::find_invalid_utf8(text) == text.size();
}

std::string toml_of_options(const OptionEntries& entries) {
  struct Table {
    std::string lines, commented_lines;
    bool is_default = true, is_named_by_key = false;
  };
  std::string top;
  std::map<std::string, Table> tables;
  for (const OptionEntry& entry : entries) {
    const size_t dot = entry.key.find('.');
    const std::string note = entry.help.empty() ? "" : wrapped("# ", help_with_choices(entry));
    const std::string key = entry.key.substr(dot + 1);
    const std::string line =
        is_utf8(entry) ? concat(key, " = ", entry.dump(), "\n")
                       : concat("# ", key, " is not UTF-8: ", escaped_bytes(entry.dump()), "\n");
    if (dot == std::string::npos) {
      top += concat(note, entry.is_empty() && entry.is_default() ? "# " : "", line);
      continue;
    }
    Table& table = tables[entry.key.substr(0, dot)];
    table.lines += note + line;
    table.commented_lines += concat(note, "# ", line);
    table.is_default = table.is_default && entry.is_default();
  }
  for (const OptionEntry& entry : entries) {
    const auto table = tables.find(entry.key);
    if (table != tables.end()) table->second.is_named_by_key = true;
  }
  for (const auto& [name, table] : tables) {
    const bool is_comment = table.is_named_by_key && table.is_default;
    top += concat("\n", is_comment ? "# " : "", "[", name, "]\n");
    top += is_comment ? table.commented_lines : table.lines;
  }
  return top;
}

}  // namespace t2r::launch
