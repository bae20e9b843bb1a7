#pragma once

#include <compare>
#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "base/batch_fields.h"

namespace t2r::data {

/// A row-major int64 array of a batch: its name and sizes, e.g. [B, T].
struct BatchField {
  std::string name;
  std::vector<int64_t> shape;

  int64_t numel() const;
  auto operator<=>(const BatchField&) const = default;
};

/// The fields of a batch, in the order in which they lie in its memory, one behind another, and
/// behind them the number of targets: one copy brings all of it to a device, and batches of one
/// layout may take turns there.
struct BatchLayout {
  std::vector<BatchField> fields;
  bool is_padded = false;  ///< targets may be below 0

  auto operator<=>(const BatchLayout&) const = default;
};

/// Rows of a language model: inputs and targets, [B, T] both.
BatchLayout language_model_layout(int64_t batch_size, int64_t length);

/// int64 that a batch of this layout takes: its fields, and the number of targets.
int64_t memory_numel(const BatchLayout& layout);

/// "8 x 512" of the first field, for messages.
std::string size_text(const BatchLayout& layout);

/// Memory of a whole batch, alive as long as `owner` is.
struct BatchMemory {
  int64_t* data = nullptr;
  std::shared_ptr<void> owner;
};

/// Gives memory for so many int64; may hand out pinned memory. Called on the loader's thread.
using BatchAllocator = std::function<BatchMemory(int64_t num_elements)>;

/// Pageable memory, uninitialised by contract.
BatchMemory allocate_pageable(int64_t num_elements);

/// One micro-batch: the arrays that a model is given, by name, and how many targets they have.
struct Batch {
  BatchLayout layout = {};
  BatchMemory memory = {};
  int64_t first_sample = 0;  ///< global index of row 0 in the run; row b is first_sample + b
  bool ends_step = false;    ///< the last micro-batch of this rank in its step

  /// Memory for a batch, whose rows are to be filled, and its targets counted then.
  static Batch make(BatchLayout layout, const BatchAllocator& allocate);

  /// The field's rows. @throws ContractError  if the batch has no such field
  int64_t* rows(std::string_view name) const;
  const BatchField& field(std::string_view name) const;

  /// Those of the field kTargets that are not below 0: what a mean over the batch divides by.
  int64_t num_targets() const;

  /// Counts the targets that the rows hold; whoever fills them calls it.
  /// @throws ContractError  if one is below 0 in a layout that is not padded
  void count_targets();
};

}  // namespace t2r::data
