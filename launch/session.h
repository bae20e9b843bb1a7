#pragma once

#include <cstdint>
#include <memory>

#include "dist/mpi_communicator.h"
#include "dist/world.h"
#include "launch/backend.h"
#include "launch/command.h"
#include "launch/options/options.h"
#include "launch/threads.h"

namespace t2r::launch {

/// What a command that runs on all ranks begins with: MPI, the same options everywhere, threads,
/// the backend. One per process, in the command's scope.
class Session {
 public:
  /// Collective: every rank, same order.
  ///
  /// @param backend  resolved (BackendOptions::resolve)
  ///                 threads: 0 as many of the rank's processors as fit_threads() finds
  /// @throws ConfigError  on every rank: options differ between ranks, or what make_backend()
  ///                      refuses
  Session(const Invocation& invocation, const OptionSet& options, const BackendOptions& backend);

  const dist::World& world() const { return world_; }
  Backend& backend() { return *backend_; }
  dist::Communicator& communicator() { return backend_->communicator(); }
  int64_t threads() const { return threads_; }

  /// Takes no more threads than a step is worth, unless the command was told how many. Local.
  void fit_threads(const StepWork& work);

 private:
  dist::World world_;
  dist::MpiCommunicator host_;
  bool chooses_threads_;
  int64_t threads_;
  std::unique_ptr<Backend> backend_;
};

}  // namespace t2r::launch
