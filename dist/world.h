#pragma once

#include <string>
#include <vector>

#include "dist/end_of_job.h"
#include "dist/launcher.h"

namespace t2r::dist {

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

/// First line of the MPI library's own version text; before and without MPI_Init, too. Local.
std::string mpi_library_version();

}  // namespace t2r::dist
