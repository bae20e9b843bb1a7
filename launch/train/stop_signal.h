#pragma once

#include <functional>
#include <optional>
#include <string>

namespace t2r::launch {

/// A file that may grow no further (RLIMIT_FSIZE) is an error of the write like a full disk, not
/// the end of the process: SIGXFSZ is ignored, for the whole program.
void ignore_file_size_signal();

/// Turns SIGUSR1, SIGTERM, SIGINT and SIGHUP into a request to save and stop. A second one of the
/// same kind ends the process at once, as the system's default would; not SIGHUP, which a closed
/// terminal sends twice, and which stays ignored where it was (nohup). SIGPIPE is ignored: who
/// reads the log may leave, the run stays.
/// @param says  whether this process writes "stopping" to stderr when it hears the first one
void install_stop_signals(bool says);

/// Whether a stop was requested on this rank.
bool stop_requested();

/// How a run of this launcher is stopped so that it saves, in one sentence.
/// @param environment  reads a variable; empty if it is not set
std::string how_to_stop(
    const std::function<std::optional<std::string>(const std::string&)>& environment);

/// The same with this process's environment.
std::string how_to_stop();

}  // namespace t2r::launch
