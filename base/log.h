#pragma once

#include <filesystem>
#include <string>

namespace t2r::log {

enum class Level { kDebug, kInfo, kWarning, kError };

/// Prefix every later line with "[rank/world]" when world > 1, and keep info lines to rank 0.
/// Warnings and errors are printed by every rank. Local.
void set_rank(int rank, int world);

/// Lines below `level` are dropped. Default kInfo.
void set_level(Level level);

/// One line each, to stderr, flushed at once; control characters in it are escaped.
void debug(const std::string& message);
void info(const std::string& message);
void warning(const std::string& message);
void error(const std::string& message);

/// A warning of what every rank knows: printed by rank 0 alone. Local.
void warning_of_first_rank(const std::string& message);

/// Appends what this process has logged so far and every later line to `file` as well, with its
/// date. A line that cannot be written (disk full) is dropped: a log does not end a run. Local.
/// @throws WriteError, DataError  as open_regular_file()
void also_to_file(const std::filesystem::path& file);

/// One line to that file alone, for what stderr shows in another form. Local.
void to_file_only(const std::string& message);

}  // namespace t2r::log
