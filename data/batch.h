#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <vector>

namespace t2r::data {

/// Memory for one batch: two row-major arrays [B, T], alive as long as `owner` is.
struct BatchBuffer {
  int64_t* inputs = nullptr;
  int64_t* targets = nullptr;
  std::shared_ptr<void> owner;
};

/// Gives memory for a batch of B sequences of T tokens; may hand out pinned memory. Called on the
/// loader's thread.
using BatchAllocator = std::function<BatchBuffer(int64_t batch_size, int64_t length)>;

/// Sequences of one micro-batch; targets are the inputs shifted by one token.
struct Batch {
  BatchBuffer buffer = {};
  int64_t batch_size = 0;    // B, sequences
  int64_t length = 0;        // T, tokens in a sequence
  int64_t first_sample = 0;  // global index of row 0 in the run; row b is first_sample + b
  bool ends_step = false;    // the last micro-batch of this rank in its step
};

/// Pageable memory, uninitialised by contract.
inline BatchBuffer allocate_pageable(int64_t batch_size, int64_t length) {
  const size_t num_elements = static_cast<size_t>(batch_size * length);
  auto memory = std::make_shared<std::vector<int64_t>>(2 * num_elements);
  return {memory->data(), memory->data() + num_elements, memory};
}

}  // namespace t2r::data
