#pragma once

#include <string>

namespace t2r::dist {

/// Logs `reason`, names this rank and ends every process of the job at once; mpirun exits with
/// `exit_code`. Works after World is gone, and before or without MPI ends this process alone.
/// Local.
[[noreturn]] void abort_job(const std::string& reason, int exit_code);

/// Ends the job because of an error, as main's last act: ranks that all end with one meet, rank 0
/// prints it for all, others only what is not the same, and each exits with rank 0's code. A rank
/// that finds itself alone after some seconds calls abort_job(). Before MPI has started it is
/// started for the meeting, where the launcher counts several processes. Every rank that fails, in
/// any order.
[[noreturn]] void end_job(const std::string& reason, int exit_code);

/// Makes what end_job() meets in. Collective: every rank, once, by World.
void prepare_end_of_job();

}  // namespace t2r::dist
