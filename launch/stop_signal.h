#pragma once

namespace t2r::launch {

/// Turns SIGUSR1, SIGTERM and SIGINT into a request to save and stop at the next step; a second
/// signal ends the process at once, as the system's default would.
void install_stop_signals();

/// Whether a stop was requested on this rank.
bool stop_requested();

}  // namespace t2r::launch
