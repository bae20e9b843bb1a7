#pragma once

#include <functional>
#include <optional>
#include <string>
#include <vector>

namespace t2r::dist {

/// Reads an environment variable; empty if it is not set.
using EnvironmentLookup = std::function<std::optional<std::string>(const std::string&)>;

/// All processes of one run: owns MPI from MPI_Init_thread to MPI_Finalize.
///
/// One object per process, in main's scope, older than every communicator. MPI errors are returned
/// and checked (MpiError), never fatal inside MPI. MPI is asked for MPI_THREAD_SERIALIZED: autograd
/// may start a reduction from its own thread while the caller waits for it.
class World {
 public:
  /// Starts MPI. Collective: every process of the job.
  /// @throws ConfigError    if the launcher and MPI disagree (see check_launcher) or if MPI has too
  ///                        little thread support
  /// @throws ContractError  if MPI was started before
  World(int* argc, char*** argv);

  /// close() unless an exception is in flight or a communicator forbade it; then the process ends
  /// without MPI_Finalize, which makes the launcher end the others instead of a hang.
  ~World();
  World(const World&) = delete;
  World& operator=(const World&) = delete;

  /// Finalises MPI; nothing of dist may be used afterwards. Collective: every rank.
  void close();

  int rank() const { return rank_; }
  int size() const { return size_; }

  /// Rank and number of ranks among those that share this host's memory.
  int local_rank() const { return local_rank_; }
  int local_size() const { return local_size_; }

  /// Host of each rank, by rank.
  const std::vector<std::string>& hosts() const { return hosts_; }

  /// First line of the MPI library's own version text.
  const std::string& mpi_version() const { return mpi_version_; }

  /// See abort_job(). Local.
  [[noreturn]] void abort(const std::string& reason, int exit_code) const;

  /// Makes close() and the destructor leave MPI unfinalised: operations are pending that a peer may
  /// never join, and MPI_Finalize would wait for them. Local.
  void forbid_finalize(const std::string& reason);

 private:
  int rank_ = 0;
  int size_ = 1;
  int local_rank_ = 0;
  int local_size_ = 1;
  int exceptions_at_start_ = 0;
  bool is_open_ = true;
  std::vector<std::string> hosts_;
  std::string mpi_version_;
};

/// Logs `reason` and ends every process of the job; mpirun exits with `exit_code`. Works in main's
/// catch after World is gone, and before or without MPI ends this process alone. Local.
[[noreturn]] void abort_job(const std::string& reason, int exit_code);

/// Refuses a job whose launcher counts other processes than MPI does, above all N processes that
/// each believe to be rank 0 of 1 (srun without --mpi=pmix, another MPI's mpirun). Local.
///
/// Compares with OMPI_COMM_WORLD_RANK/SIZE, else PMI_RANK/SIZE, else, inside a Slurm step,
/// SLURM_PROCID and SLURM_STEP_NUM_TASKS (SLURM_NTASKS); and with PMIX_RANK. Slurm's variables are
/// ignored under mpirun, where they describe the daemons, and in a batch script, where they
/// describe the job.
/// @throws ConfigError  naming variable, both values and what to do
void check_launcher(const EnvironmentLookup& environment, int mpi_rank, int mpi_size);

}  // namespace t2r::dist
