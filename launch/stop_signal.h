#pragma once

#include <functional>
#include <optional>
#include <string>

namespace t2r::launch {

/// A file that may grow no further (RLIMIT_FSIZE) is an error of the write like a full disk, not
/// the end of the process: SIGXFSZ is ignored, for the whole program.
void ignore_file_size_signal();

/// For a command that saves: called from its first lines on, so that a stop during its start is not
/// the death of the process either.
///
/// Turns SIGUSR1, SIGTERM, SIGINT and SIGHUP into a request to save and stop. Another one of the
/// same kind, half a second after the first or later, ends the process at once, as the system's
/// default would; not SIGHUP, which a closed terminal sends twice, and which stays ignored where it
/// was (nohup). SIGPIPE is ignored: who reads the log may leave, the run stays.
/// Those that were held back until now (launch/short_waits.cpp, hold_stops_for_next_program()) come
/// through.
/// @param says  whether this process writes "stopping" to stderr when it hears the first one
void install_stop_signals(bool says);

/// From now on a stop is heard by the training loop, and "stopping" says so.
/// @param says  as of install_stop_signals(), which may not know the rank yet
void note_training_begins(bool says);

/// Whether a stop was requested on this rank.
bool stop_requested();

/// For the start of a run, between install_stop_signals() and the first step. Local.
/// @throws Error  of kSavedRequeue, if a stop was requested: nothing is there to be saved yet, and
///                the same command does all of it later
void end_if_stop_requested();

/// Before another program takes this process's place: holds back signals that this one listens to,
/// for the other's install_stop_signals(). Nothing, where they are not listened to. Local.
/// @throws Error  as end_if_stop_requested()
void hold_stops_for_next_program();

/// How a run of this launcher is stopped so that it saves, in one sentence.
/// @param environment  reads a variable; empty if it is not set
std::string how_to_stop(
    const std::function<std::optional<std::string>(const std::string&)>& environment);

/// The same with this process's environment.
std::string how_to_stop();

}  // namespace t2r::launch
