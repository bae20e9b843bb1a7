#pragma once

#include <c10/core/Event.h>
#include <c10/core/Stream.h>
#include <torch/types.h>

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "dist/bucket_plan.h"
#include "dist/communicator.h"

namespace t2r::dist {

/// One parameter and where its gradient lies in the arena, in elements.
struct GradientSlice {
  std::string name;
  torch::Tensor parameter;  ///< leaf that requires a gradient; its grad is the arena's view
  int64_t offset;
  int64_t numel;
  int64_t group;  ///< layer; buckets are cut at its edges
};

struct GradientReducerOptions {
  int64_t first_cap_bytes = int64_t{1} << 20;
  int64_t cap_bytes = int64_t{25} << 20;
};

/// What one step's reduction cost.
struct ReductionReport {
  /// On the CPU, from finish_step's call until the last bucket was there. On a GPU, where the host
  /// does not wait, how long the stream did: in the newest step that the device has finished and
  /// that was measured (one at a time, none inside a capture); 0 until there is one.
  double exposed_seconds = 0;
  int64_t num_launched_in_backward = 0;  ///< buckets that backward had a chance to hide
  int64_t num_missing_gradients = 0;     ///< parameters that backward did not reach; zero gradient
};

/// Sums gradients over all ranks while backward still runs.
///
/// grad = sum over ranks and micro-steps of the rank's gradient; never averaged: the caller divides
/// by the global token count. Gradients live in one flat arena in backward order. A hook behind
/// each parameter's accumulation marks it ready; a bucket is launched once it and all before it are
/// ready, so every rank launches in index order whatever order its hooks come in.
///
/// A step: begin_step(); for each micro-step begin_micro_step(is_last), forward, one backward;
/// finish_step(). Only the last micro-step launches.
///
/// An arena on a GPU may be float32 or bfloat16 (the communicator's choice); then nothing here
/// makes the host wait, and a whole step may be captured into a CUDA graph: what is captured is the
/// work on the current stream and on those that the communicator forks from it and joins in
/// finish_step. A replay runs no code of this class. Forward, begin_micro_step, backward and
/// finish_step use one current stream. Source: c10d's Reducer (Li et al. 2020, "PyTorch
/// Distributed", section 3.2)
class GradientReducer {
 public:
  /// Verifies that all ranks have the same parameters. Collective: every rank, same order.
  ///
  /// @param slices  in arena order, which should be the order in which backward reaches them
  /// @param arena   1-D and contiguous; covered by the slices without holes
  /// @throws ContractError  on every rank: a slice that breaks its rule on some rank, or the first
  ///                        parameter whose name, shape, dtype or place differs between ranks
  GradientReducer(std::vector<GradientSlice> slices,
                  torch::Tensor arena,
                  Communicator& communicator,
                  const GradientReducerOptions& options = {});

  /// Takes the hooks off the parameters; waits for nothing. Local.
  ~GradientReducer();
  GradientReducer(const GradientReducer&) = delete;
  GradientReducer& operator=(const GradientReducer&) = delete;

  /// Zeroes the arena. Local.
  /// @throws ContractError  if the step before was not finished, e.g. after a failed backward
  void begin_step();

  /// @param is_last  the backward that follows launches the buckets; once per step. Local.
  void begin_micro_step(bool is_last);

  /// Launches what backward left, with zeros for parameters that it did not reach, and waits until
  /// the arena holds the sums (on a GPU: lets the current stream wait). Collective: every rank,
  /// same order.
  ReductionReport finish_step();

  /// Ends a step that nobody shall use, e.g. one that only warmed the device up; launches nothing.
  /// Only while no bucket is under way: before the last micro-step. Local.
  void discard_step();

  const std::vector<Bucket>& buckets() const { return buckets_; }

 private:
  class Hook;
  enum class Phase { kIdle, kStep, kMicroStep, kLastMicroStep };

  void attach_hooks();
  void on_gradient(size_t slice);
  void check_gradient_view(size_t slice) const;
  void check_stream(size_t slice) const;
  void mark_ready(size_t slice);
  void launch_ready_buckets();
  void wait_on_host(ReductionReport& report);
  void wait_on_device(ReductionReport& report);

  std::vector<GradientSlice> slices_;
  torch::Tensor arena_;
  Communicator& communicator_;
  std::vector<Bucket> buckets_;
  std::vector<torch::Tensor> bucket_views_;
  std::vector<std::vector<size_t>> buckets_of_slice_;

  Phase phase_ = Phase::kIdle;
  std::vector<bool> is_ready_;        // by slice
  std::vector<int64_t> num_unready_;  // slices that a bucket waits for
  size_t next_bucket_ = 0;            // the first that was not launched
  std::vector<std::unique_ptr<Work>> in_flight_;

  // Of an arena on a device only.
  struct WaitMarks {
    c10::Event begin;
    c10::Event end;
  };
  std::optional<c10::Stream> stream_;      // of the micro-step
  std::optional<WaitMarks> unread_marks_;  // around one step's waits
  double device_exposed_seconds_ = 0;
};

}  // namespace t2r::dist
