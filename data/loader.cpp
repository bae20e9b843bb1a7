#include "data/loader.h"

#include <algorithm>
#include <chrono>
#include <utility>
#include <vector>

#include "base/error.h"

namespace t2r::data {

Loader::Loader(const Corpus& corpus,
               const Sampler& sampler,
               const BatchPlan& plan,
               LoaderOptions options)
    : corpus_(corpus), sampler_(sampler), plan_(plan), options_(std::move(options)) {
  plan_.check();
  if (options_.cursor < 0) {
    throw ConfigError(concat("the data cursor is ", options_.cursor, ", must not be negative"));
  }
  if (options_.queue_depth < 1) {
    throw ConfigError(concat("queue_depth is ", options_.queue_depth, ", must be at least 1"));
  }
  thread_ = std::jthread([this](const std::stop_token& stop) { read_ahead(stop); });
}

Loader::~Loader() = default;

Batch Loader::next() {
  std::unique_lock lock(mutex_);
  if (queue_.empty() && error_ == nullptr) {
    const auto begin = std::chrono::steady_clock::now();
    changed_.wait(lock, [this] { return !queue_.empty() || error_ != nullptr; });
    wait_seconds_ +=
        std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
  }
  if (queue_.empty()) std::rethrow_exception(error_);
  Batch batch = std::move(queue_.front());
  queue_.pop_front();
  lock.unlock();
  changed_.notify_all();
  return batch;
}

void Loader::read_ahead(const std::stop_token& stop) {
  try {
    for (int64_t cursor = options_.cursor;; cursor += plan_.global_batch) {
      const std::vector<SampleRange> pieces = plan_.micro_batches(cursor);
      for (const SampleRange& piece : pieces) {
        if (stop.stop_requested()) return;
        Batch batch = read_batch(piece);
        batch.ends_step = piece == pieces.back();
        if (!push(std::move(batch), stop)) return;
      }
    }
  } catch (...) {
    {
      const std::lock_guard lock(mutex_);
      error_ = std::current_exception();
    }
    changed_.notify_all();
  }
}

Batch Loader::read_batch(const SampleRange& range) const {
  const int64_t length = sampler_.window_length();
  Batch batch = Batch::make(language_model_layout(range.count, length), options_.allocate);
  batch.first_sample = range.first;
  int64_t* const inputs = batch.rows(kInputs);
  int64_t* const targets = batch.rows(kTargets);
  std::vector<int64_t> tokens(static_cast<size_t>(length) + 1);
  for (int64_t row = 0; row < range.count; ++row) {
    corpus_.read(sampler_.first_token(range.first + row), length + 1, tokens.data());
    std::copy(tokens.begin(), tokens.end() - 1, inputs + row * length);
    std::copy(tokens.begin() + 1, tokens.end(), targets + row * length);
  }
  batch.count_targets();
  return batch;
}

/// False when the loader is being stopped.
bool Loader::push(Batch batch, const std::stop_token& stop) {
  std::unique_lock lock(mutex_);
  const auto has_room = [this] {
    return static_cast<int64_t>(queue_.size()) < options_.queue_depth;
  };
  if (!changed_.wait(lock, stop, has_room)) return false;
  queue_.push_back(std::move(batch));
  lock.unlock();
  changed_.notify_all();
  return true;
}

}  // namespace t2r::data
