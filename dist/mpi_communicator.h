#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "dist/communicator.h"

namespace t2r::dist {

class World;

struct MpiCommunicatorOptions {
  /// Elements per MPI call: larger tensors are split, because MPI counts in int and some of its
  /// algorithms count bytes in int.
  int64_t max_count = int64_t{1} << 28;
};

/// Communicator of CPU tensors through MPI, on a duplicate of MPI_COMM_WORLD of its own.
///
/// Every reduction is an MPI_Iallreduce: Open MPI's algorithms for it (binomial tree, ring) compute
/// each element once and hand it on, so every rank holds the same bits, and the same call gives the
/// same bits again. MPI moves data only inside its own calls: little of it overlaps with computing.
/// A world of one rank calls MPI for nothing but the duplicate.
class MpiCommunicator : public Communicator {
 public:
  /// Collective: every rank, same order.
  /// @param world  must outlive the communicator
  explicit MpiCommunicator(World& world, const MpiCommunicatorOptions& options = {});

  int rank() const override;
  int size() const override;
  void all_reduce(torch::Tensor tensor, Reduction reduction) override;

  /// A Work destroyed before its reduction ended keeps the tensor alive and MPI unfinalised until
  /// the process ends: nobody can know whether the peers will join it.
  std::unique_ptr<Work> all_reduce_async(torch::Tensor tensor, Reduction reduction) override;
  void broadcast(torch::Tensor tensor, int root) override;
  void reduce_scatter(torch::Tensor flat, const ShardPlan& plan) override;
  void all_gather(torch::Tensor flat, const ShardPlan& plan) override;
  std::vector<std::string> all_gather(const std::string& text) override;
  void barrier() override;
  [[noreturn]] void abort(const std::string& reason, int exit_code) override;

 private:
  struct Handle;
  std::shared_ptr<Handle> handle_;
};

}  // namespace t2r::dist
