#include "data/batch.h"

#include <algorithm>
#include <utility>

#include "base/error.h"

namespace t2r::data {
namespace {

auto find(const BatchLayout& layout, std::string_view name) {
  const auto found = std::ranges::find(layout.fields, name, &BatchField::name);
  require(found != layout.fields.end(), concat("a batch has no field \"", name, "\""));
  return found;
}

}  // namespace

int64_t BatchField::numel() const {
  int64_t count = 1;
  for (const int64_t size : shape) count *= size;
  return count;
}

BatchLayout language_model_layout(int64_t batch_size, int64_t length) {
  return {.fields = {{kInputs, {batch_size, length}}, {kTargets, {batch_size, length}}}};
}

int64_t memory_numel(const BatchLayout& layout) {
  int64_t count = 1;
  for (const BatchField& field : layout.fields) count += field.numel();
  return count;
}

std::string size_text(const BatchLayout& layout) {
  std::string text;
  for (const int64_t size : layout.fields.front().shape)
    text += concat(text.empty() ? "" : " x ", size);
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
  for (auto at = layout.fields.begin(), end = find(layout, name); at != end; ++at)
    rows += at->numel();
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
  const int64_t count = std::count_if(
      targets, targets + field(kTargets).numel(), [](int64_t target) { return target >= 0; });
  require(layout.is_padded || count == field(kTargets).numel(),
          "a batch whose layout has no padding has targets below 0");
  memory.data[memory_numel(layout) - 1] = count;
}

}  // namespace t2r::data
