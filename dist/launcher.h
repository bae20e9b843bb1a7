#pragma once

#include <functional>
#include <optional>
#include <string>

namespace t2r::dist {

/// Reads an environment variable; empty if it is not set.
using EnvironmentLookup = std::function<std::optional<std::string>(const std::string&)>;

/// This process's own environment.
std::optional<std::string> environment_variable(const std::string& name);

/// What the launcher says of this process, known before MPI starts.
struct LauncherPlace {
  int size = 1;
  std::optional<int> rank;
  const char* rank_variable = nullptr;
  const char* size_variable = nullptr;
};

/// From OMPI_COMM_WORLD_RANK/SIZE, else PMI_RANK/SIZE, else, inside a Slurm step, SLURM_PROCID and
/// SLURM_STEP_NUM_TASKS (SLURM_NTASKS); nothing without a launcher. Slurm's variables are ignored
/// under mpirun, where they describe the daemons, and in a batch script, where they describe the
/// job. Local.
/// @throws ConfigError  naming a variable that is not an integer >= 0
std::optional<LauncherPlace> launcher_place(const EnvironmentLookup& environment);

/// Refuses a job whose launcher counts other processes than MPI does, above all N processes that
/// each believe to be rank 0 of 1 (srun without --mpi=pmix, another MPI's mpirun). Compares with
/// launcher_place() and with PMIX_RANK. Local.
/// @throws ConfigError  naming variable, both values and what to do
void check_launcher(const EnvironmentLookup& environment, int mpi_rank, int mpi_size);

/// Refuses to be one of several processes: of a command that does not share its work among ranks,
/// each would do the whole and write the same files. Local.
/// @throws ConfigError  naming the command and the number of processes
void check_started_alone(const EnvironmentLookup& environment, const std::string& command);

}  // namespace t2r::dist
