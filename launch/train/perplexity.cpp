#include "launch/train/perplexity.h"

#include <algorithm>
#include <memory>
#include <vector>

#include "base/error.h"
#include "base/text.h"
#include "dist/agreement.h"
#include "launch/gpu_memory.h"

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

struct Score {
  double loss_sum = 0.0;
  int64_t num_tokens = 0;
};

Score score_batch(const model::Trainable& model,
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
  if (corpus.begin_of_text().has_value())
    targets.masked_fill_(targets == int64_t{*corpus.begin_of_text()}, -1);
  const auto on_device = [&](const Tensor& tensor) {
    return tensor.contiguous().to(model.device());
  };
  const model::TensorBatch on_model(on_device(tokens.narrow(1, 0, length)), on_device(targets));
  return {model.target_losses(on_model).sum(torch::kFloat64).item<double>(),
          on_model.num_targets().item<int64_t>()};
}

// The batches of this rank: every world-th window, `batch_size` of one length at a time.
std::vector<std::vector<Window>> batches_of_rank(const std::vector<Window>& windows,
                                                 int64_t batch_size,
                                                 const dist::Communicator& communicator) {
  std::vector<std::vector<Window>> batches;
  const auto world = static_cast<size_t>(communicator.size());
  for (size_t i = communicator.rank(); i < windows.size(); i += world) {
    if (batches.empty() || static_cast<int64_t>(batches.back().size()) == batch_size ||
        batches.back().front().length != windows[i].length) {
      batches.emplace_back();
    }
    batches.back().push_back(windows[i]);
  }
  return batches;
}

int64_t scored_tokens(const std::vector<Window>& windows) {
  int64_t scored = 0;
  for (const Window& window : windows) scored += window.scored;
  return scored;
}

}  // namespace

void PerplexityProtocol::validate() const {
  require(context >= 1 && max_tokens >= 0 && batch_size >= 1, "PerplexityProtocol: sizes");
  if (scored < 1 || scored > context) {
    throw ConfigError(
        not_allowed("scored", std::to_string(scored), concat("1 to context = ", context)));
  }
}

PerplexityResult score_corpus(const model::Trainable& model,
                              const data::Corpus& corpus,
                              const PerplexityProtocol& protocol,
                              dist::Communicator& communicator,
                              const ScoringHooks& hooks) {
  protocol.validate();
  const std::vector<Window> windows = cut_windows(corpus.num_tokens(), protocol);
  if (windows.empty()) throw DataError("the corpus has fewer than two tokens: nothing to score");
  const std::vector<std::vector<Window>> batches =
      batches_of_rank(windows, protocol.batch_size, communicator);
  // Ranks may have numbers of batches that differ by one: all take part in as many rounds.
  Tensor num_rounds = torch::tensor({static_cast<int64_t>(batches.size())}, torch::kInt64);
  communicator.all_reduce(num_rounds, dist::Reduction::kMax);
  const auto rounds = static_cast<size_t>(num_rounds.item<int64_t>());

  Tensor totals = torch::zeros({2}, torch::kFloat64);
  double* total = totals.data_ptr<double>();
  const int64_t all_tokens = scored_tokens(windows);
  dist::LocalOutcome outcome;
  bool is_stopped = false;
  for (size_t round = 0; round < rounds && !is_stopped; ++round) {
    const bool wants_stop = hooks.is_stop_requested && hooks.is_stop_requested();
    // Whether any rank has failed or is to stop: asked while the batch is computed.
    Tensor ends = torch::tensor({int64_t{wants_stop}, int64_t{!outcome.is_good()}});
    const std::unique_ptr<dist::Work> asked =
        communicator.all_reduce_async(ends, dist::Reduction::kSum);
    if (outcome.is_good() && round < batches.size()) {
      outcome = dist::attempt([&] {
        const std::vector<Window>& batch = batches[round];
        const Score score = or_say_what_for(concat(" for scoring ",
                                                   batch.size(),
                                                   " windows of ",
                                                   batch.front().length,
                                                   " tokens; try a smaller ",
                                                   hooks.batch_option),
                                            [&] { return score_batch(model, corpus, batch); });
        total[0] += score.loss_sum;
        total[1] += static_cast<double>(score.num_tokens);
      });
    }
    asked->wait();
    if (ends[1].item<int64_t>() > 0) break;
    is_stopped = ends[0].item<int64_t>() > 0 && round + 1 < rounds;
    if (hooks.on_progress)
      hooks.on_progress(all_tokens * static_cast<int64_t>(round + 1) / static_cast<int64_t>(rounds),
                        all_tokens);
  }
  dist::agree(communicator, outcome).throw_if_failed();
  communicator.all_reduce(totals, dist::Reduction::kSum);
  return {total[0], static_cast<int64_t>(total[1]), is_stopped};
}

}  // namespace t2r::launch
