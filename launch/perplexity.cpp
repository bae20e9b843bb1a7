#include "launch/perplexity.h"

#include <algorithm>
#include <vector>

#include "base/error.h"
#include "launch/agreement.h"

namespace t2r::launch {
namespace {

using torch::Tensor;

// Window w covers the inputs [begin, begin + length); its last `scored` targets count.
struct Window {
  int64_t begin = 0;
  int64_t length = 0;
  int64_t scored = 0;
};

std::vector<Window> cut_windows(int64_t num_tokens, const PerplexityProtocol& protocol) {
  int64_t num_targets = num_tokens - 1;
  if (protocol.max_tokens > 0) num_targets = std::min(num_targets, protocol.max_tokens);
  std::vector<Window> windows;
  for (int64_t done = 0; done < num_targets;) {
    const int64_t scored =
        std::min(num_targets - done, windows.empty() ? protocol.context : protocol.scored);
    const int64_t end = done + scored, begin = std::max<int64_t>(0, end - protocol.context);
    windows.push_back({begin, end - begin, scored});
    done = end;
  }
  return windows;
}

double score_batch(const model::DecoderLM& model,
                   const data::Corpus& corpus,
                   const std::vector<Window>& windows) {
  const auto batch = static_cast<int64_t>(windows.size());
  const int64_t length = windows.front().length;
  const Tensor tokens = torch::empty({batch, length + 1}, torch::kInt64);
  Tensor targets = torch::empty({batch, length}, torch::kInt64);
  for (int64_t b = 0; b < batch; ++b) {
    corpus.read(windows[b].begin, length + 1, tokens.data_ptr<int64_t>() + b * (length + 1));
  }
  targets.copy_(tokens.narrow(1, 1, length));
  for (int64_t b = 0; b < batch; ++b) targets[b].narrow(0, 0, length - windows[b].scored).fill_(-1);
  const auto on_device = [&](const Tensor& tensor) {
    return tensor.contiguous().to(model.device());
  };
  return model.token_losses(on_device(tokens.narrow(1, 0, length)), on_device(targets))
      .sum(torch::kFloat64)
      .item<double>();
}

}  // namespace

void PerplexityProtocol::validate() const {
  if (context < 1) throw ConfigError(concat("context = ", context, ", allowed: 1 or more"));
  if (scored < 1 || scored > context) {
    throw ConfigError(concat("scored = ", scored, ", allowed: 1 to context = ", context));
  }
  if (batch_size < 1)
    throw ConfigError(concat("batch-size = ", batch_size, ", allowed: 1 or more"));
}

PerplexityResult score_corpus(const model::DecoderLM& model,
                              const data::Corpus& corpus,
                              const PerplexityProtocol& protocol,
                              dist::Communicator& communicator) {
  protocol.validate();
  const std::vector<Window> windows = cut_windows(corpus.num_tokens(), protocol);
  if (windows.empty()) throw DataError("the corpus has fewer than two tokens: nothing to score");
  Tensor totals = torch::zeros({2}, torch::kFloat64);
  double* total = totals.data_ptr<double>();
  std::vector<Window> batch;
  const auto flush = [&] {
    if (batch.empty()) return;
    total[0] += score_batch(model, corpus, batch);
    for (const Window& window : batch) total[1] += static_cast<double>(window.scored);
    batch.clear();
  };
  const auto world = static_cast<size_t>(communicator.size());
  on_all_ranks(communicator, [&] {
    for (size_t i = communicator.rank(); i < windows.size(); i += world) {
      if (!batch.empty() && batch.front().length != windows[i].length) flush();
      batch.push_back(windows[i]);
      if (static_cast<int64_t>(batch.size()) == protocol.batch_size) flush();
    }
    flush();
  });
  communicator.all_reduce(totals, dist::Reduction::kSum);
  return {total[0], static_cast<int64_t>(total[1])};
}

}  // namespace t2r::launch
