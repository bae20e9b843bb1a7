#include "data/batch.h"

#include <algorithm>
#include <utility>

#include "base/error.h"

namespace t2r::data {
namespace {

BatchLayout::const_iterator find(const BatchLayout& layout, std::string_view name) {
  const auto found = std::ranges::find(layout, name, &BatchField::name);
  require(found != layout.end(), concat("a batch has no field \"", name, "\""));
  return found;
}

}  // namespace

int64_t BatchField::numel() const {
  int64_t count = 1;
  for (const int64_t size : shape) count *= size;
  return count;
}

BatchLayout language_model_layout(int64_t batch_size, int64_t length) {
  return {{kInputs, {batch_size, length}}, {kTargets, {batch_size, length}}};
}

int64_t memory_numel(const BatchLayout& layout) {
  int64_t count = 1;
  for (const BatchField& field : layout) count += field.numel();
  return count;
}

std::string size_text(const BatchLayout& layout) {
  std::string text;
  for (const int64_t size : layout.front().shape) text += concat(text.empty() ? "" : " x ", size);
  return text;
}

BatchMemory allocate_pageable(int64_t num_elements) {
  auto memory = std::make_shared<std::vector<int64_t>>(static_cast<size_t>(num_elements));
  return {memory->data(), memory};
}

Batch Batch::make(BatchLayout layout, const BatchAllocator& allocate) {
  Batch batch{.layout = std::move(layout)};
  batch.memory = allocate(memory_numel(batch.layout));
  return batch;
}

int64_t* Batch::rows(std::string_view name) const {
  int64_t* rows = memory.data;
  for (auto at = layout.begin(), end = find(layout, name); at != end; ++at) rows += at->numel();
  return rows;
}

const BatchField& Batch::field(std::string_view name) const {
  return *find(layout, name);
}

int64_t Batch::num_targets() const {
  return memory.data[memory_numel(layout) - 1];
}

void Batch::count_targets() {
  const int64_t* const targets = rows(kTargets);
  memory.data[memory_numel(layout) - 1] = std::count_if(
      targets, targets + field(kTargets).numel(), [](int64_t target) { return target >= 0; });
}

}  // namespace t2r::data
