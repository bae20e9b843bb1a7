#pragma once

#include <chrono>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "dist/communicator.h"

namespace t2r::dist {

class MpiCommunicator;
class World;

struct NcclCommunicatorOptions {
  int device = 0;  ///< this rank's GPU; choose_device (dist/nccl/gpu_device.h) knows which

  /// How long the ranks may take to find each other; then start-up fails on every rank.
  std::chrono::milliseconds init_deadline = std::chrono::seconds(120);

  /// How long synchronize_device waits before it calls that a hang, and, if longer than
  /// init_deadline, how long NCCL may take to queue an operation; 0 means for ever.
  std::chrono::milliseconds wait_deadline = std::chrono::minutes(10);

  /// Called on this rank before NCCL's own start. For tests of what happens if it throws.
  std::function<void()> before_init = {};
};

/// Communicator of GPU tensors through NCCL; CPU tensors, texts and barriers go to MPI.
///
/// Operations are queued on a high-priority stream of its own, which waits for the caller's current
/// stream first; Work::wait() lets the current stream wait for it. No host waits for a device but
/// in synchronize_device(). Legal on autograd's threads and in a CUDA graph's capture; capture
/// after one eager step with the same sizes, because NCCL connects ranks at first use.
///
/// The calling thread's device is `device` from then on. Destroy CUDA graphs that captured
/// operations first: NCCL cannot leave while they live.
class NcclCommunicator : public Communicator {
 public:
  /// Starts NCCL and verifies one sum over all ranks. Collective: every rank, same order.
  ///
  /// @param world, host  must outlive the communicator
  /// @throws ConfigError  on every rank: two ranks with one GPU, or no such GPU on some rank
  /// @throws NcclError    on every rank, by init_deadline, if NCCL fails or hangs on any: rank,
  /// host,
  ///                      GPU, NCCL's words, what to check
  NcclCommunicator(World& world, MpiCommunicator& host, const NcclCommunicatorOptions& options);

  /// Waits for all operations and leaves NCCL: every rank, same order. With an exception in flight
  /// it aborts instead, and waits for no peer.
  ~NcclCommunicator() override;

  int rank() const override;
  int size() const override;
  void all_reduce(torch::Tensor tensor, Reduction reduction) override;
  std::unique_ptr<Work> all_reduce_async(torch::Tensor tensor, Reduction reduction) override;
  void broadcast(torch::Tensor tensor, int root) override;
  void reduce_scatter(torch::Tensor flat, const ShardPlan& plan) override;
  void all_gather(torch::Tensor flat, const ShardPlan& plan) override;
  std::vector<std::string> all_gather(const std::string& text) override;

  /// Of the hosts: says nothing about what their devices have done.
  void barrier() override;

  /// Polls NCCL for errors while it waits.
  /// @throws NcclError  if NCCL reports one, or after wait_deadline; the communicator is aborted
  /// then
  void synchronize_device() override;

  bool is_capturing() const override;

  [[noreturn]] void abort(const std::string& reason, int exit_code) override;

  /// NCCL's version, e.g. "2.28.9". Local.
  static std::string version();

 private:
  struct State;
  std::unique_ptr<State> state_;
};

}  // namespace t2r::dist
