#pragma once

#include <condition_variable>
#include <cstdint>
#include <deque>
#include <exception>
#include <mutex>
#include <stop_token>
#include <thread>

#include "data/batch.h"
#include "data/corpus.h"
#include "data/sampler.h"

namespace t2r::data {

struct LoaderOptions {
  int64_t cursor = 0;       // global index of the first sample of the first step
  int64_t queue_depth = 4;  // batches read ahead; memory: that many, and one being read
  BatchAllocator allocate = &allocate_pageable;
};

/// Reads this rank's micro-batches ahead of the training loop, on one thread, without end.
///
/// Batches come in the order of BatchPlan::micro_batches(cursor), then those of cursor +
/// global_batch, and so on. The loader keeps no state that a checkpoint needs: one made with the
/// same plan at a later cursor gives what this one would have given from there on.
class Loader {
 public:
  /// @param corpus  outlives the loader
  /// @throws ConfigError  if the plan cannot be honoured, cursor < 0 or queue_depth < 1
  Loader(const Corpus& corpus,
         const Sampler& sampler,
         const BatchPlan& plan,
         LoaderOptions options);

  /// Stops the thread, with batches waiting or not; returns after the read in progress.
  ~Loader();
  Loader(const Loader&) = delete;
  Loader& operator=(const Loader&) = delete;

  /// The next batch; waits for it when it has not been read yet.
  /// @throws whatever the thread or the allocator threw, after all batches before it; again on each
  /// call
  Batch next();

  /// Time that next() has spent waiting since the loader was made.
  double wait_seconds() const { return wait_seconds_; }

 private:
  void read_ahead(const std::stop_token& stop);
  Batch read_batch(const SampleRange& range) const;
  bool push(Batch batch, const std::stop_token& stop);

  const Corpus& corpus_;
  const Sampler sampler_;
  const BatchPlan plan_;
  const LoaderOptions options_;
  double wait_seconds_ = 0;

  std::mutex mutex_;  // guards queue_ and error_
  std::condition_variable_any changed_;
  std::deque<Batch> queue_;
  std::exception_ptr error_;
  std::jthread thread_;  // last: it uses everything above
};

}  // namespace t2r::data
