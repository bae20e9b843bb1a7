#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "dist/communicator.h"

namespace t2r::dist {

/// Communicator of threads in one process: every rank is a thread. For tests.
///
/// Reductions run in rank order (0, 1, ...), so they are the same bits in every run. Each operation
/// is checked: ranks that call different ones, or with other shapes, all get a ContractError.
class LocalCommunicator : public Communicator {
 public:
  struct Group;

  LocalCommunicator(std::shared_ptr<Group> group, int rank);

  int rank() const override { return rank_; }
  int size() const override;

  /// @throws ContractError  on every rank, if the ranks' calls do not match
  /// @throws Error          with the aborting rank's exit code, after abort() on any rank
  void all_reduce(torch::Tensor tensor, Reduction reduction) override;
  std::unique_ptr<Work> all_reduce_async(torch::Tensor tensor, Reduction reduction) override;
  void broadcast(torch::Tensor tensor, int root) override;
  void reduce_scatter(torch::Tensor flat, const ShardPlan& plan) override;
  void all_gather(torch::Tensor flat, const ShardPlan& plan) override;
  std::vector<std::string> all_gather(const std::string& text) override;
  void barrier() override;

  /// Wakes every rank that waits; all of them and this one throw Error(exit_code). Local.
  [[noreturn]] void abort(const std::string& reason, int exit_code) override;

 private:
  std::shared_ptr<Group> group_;
  int rank_;
  int64_t num_operations_ = 0;
};

/// One communicator per rank of a fresh group, by rank. Local.
std::vector<std::unique_ptr<LocalCommunicator>> make_local_communicators(int size);

/// Runs `body` on `size` threads, one rank each. An exception on one rank aborts the others; the
/// first exception is thrown again when all threads ended. Local.
void run_local_ranks(int size, const std::function<void(Communicator&)>& body);

}  // namespace t2r::dist
