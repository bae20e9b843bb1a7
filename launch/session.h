#pragma once

#include <cstdint>
#include <memory>

#include "dist/mpi_communicator.h"
#include "dist/world.h"
#include "launch/backend.h"
#include "launch/command.h"
#include "launch/options.h"

namespace t2r::launch {

/// What a command that runs on all ranks begins with: MPI, the same options everywhere, threads,
/// the backend. One per process, in the command's scope.
class Session {
 public:
  /// Collective: every rank, same order.
  ///
  /// @param backend  resolved (BackendOptions::resolve)
  /// @param threads  per rank; 0: this host's processors divided by its ranks
  /// @throws ConfigError  on every rank: options differ between ranks, threads is negative, or what
  ///                      make_backend() refuses
  Session(const Invocation& invocation,
          const OptionSet& options,
          const BackendOptions& backend,
          int64_t threads);

  const dist::World& world() const { return world_; }
  Backend& backend() { return *backend_; }
  dist::Communicator& communicator() { return backend_->communicator(); }
  int64_t threads() const { return threads_; }

 private:
  dist::World world_;
  dist::MpiCommunicator host_;
  int64_t threads_;
  std::unique_ptr<Backend> backend_;
};

}  // namespace t2r::launch
