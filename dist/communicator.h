#pragma once

#include <torch/types.h>

#include <memory>
#include <string>
#include <vector>

#include "dist/shard_plan.h"

namespace t2r::dist {

enum class Reduction { kSum, kMax, kMin };

/// A collective that was started and not yet waited for.
class Work {
 public:
  virtual ~Work() = default;

  /// Returns when the result is in the tensor. For a GPU tensor it makes the calling thread's
  /// current stream wait instead, and not the host: what that stream is given afterwards sees the
  /// result. Local: waits for this rank's part.
  virtual void wait() = 0;
};

/// The collective operations that training needs, over all ranks of a run.
///
/// Every rank calls the same operations in the same order with tensors of the same shape and dtype.
/// Tensors are contiguous; float32, float64, int32, int64 or uint8, on a GPU also bfloat16. One
/// thread per rank at a time.
///
/// Operations on GPU tensors run in stream order: they see what the calling thread's current stream
/// was given before the call, never wait on the host for the device, and may be captured into a
/// CUDA graph, if they are also waited for inside it.
class Communicator {
 public:
  virtual ~Communicator() = default;

  virtual int rank() const = 0;
  virtual int size() const = 0;

  /// Reduces in place; the result is the same, bit for bit, on every rank. kMax and kMin of a NaN
  /// are unspecified: agree on finiteness with integers. Collective: every rank, same order.
  virtual void all_reduce(torch::Tensor tensor, Reduction reduction) = 0;

  /// The same without waiting: `tensor` belongs to the operation until wait(). Destroying the Work
  /// instead is for ending the run only. Collective: every rank, same order.
  virtual std::unique_ptr<Work> all_reduce_async(torch::Tensor tensor, Reduction reduction) = 0;

  /// Copies root's tensor into every rank's. Collective: every rank, same order.
  virtual void broadcast(torch::Tensor tensor, int root) = 0;

  /// Sums in place into shards: afterwards this rank's shard of `flat` holds the sum over all
  /// ranks, and the rest of it what nobody shall use. Collective: every rank, same order.
  /// @throws ContractError  if the plan does not fit `flat` or the number of ranks
  virtual void reduce_scatter(torch::Tensor flat, const ShardPlan& plan) = 0;

  /// Copies every rank's shard of its `flat` into all others'. Collective: every rank, same order.
  /// @throws ContractError  if the plan does not fit `flat` or the number of ranks
  virtual void all_gather(torch::Tensor flat, const ShardPlan& plan) = 0;

  /// Every rank's text, by rank; lengths may differ. Collective: every rank, same order.
  virtual std::vector<std::string> all_gather(const std::string& text) = 0;

  /// Collective: every rank, same order.
  virtual void barrier() = 0;

  /// Returns once the device has done what the calling thread's current stream was given so far;
  /// throws when a collective in it can never end. At once where tensors are the host's. Local.
  virtual void synchronize_device() {}

  /// Whether the current stream's work is recorded into a CUDA graph instead of run. Local.
  virtual bool is_capturing() const { return false; }

  /// Ends the whole job from one rank: says why and does not return to a collective. Local.
  [[noreturn]] virtual void abort(const std::string& reason, int exit_code) = 0;
};

}  // namespace t2r::dist
