#include "model/generate.h"

#include <ATen/CPUGeneratorImpl.h>

#include <algorithm>
#include <chrono>
#include <cmath>

#include "base/error.h"
#include "base/seed.h"

namespace t2r::model {
namespace {

using torch::Tensor;
using Clock = std::chrono::steady_clock;

double seconds_since(Clock::time_point start) {
  return std::chrono::duration<double>(Clock::now() - start).count();
}

// The chosen tokens, on the CPU; a GPU's logits come to the CPU's generator.
Tensor draw(Tensor logits_BV, const SamplingOptions& options, torch::Generator& generator) {
  if (options.temperature == 0.0) return logits_BV.argmax(-1).cpu();
  logits_BV = logits_BV.to(torch::kCPU, torch::kFloat32) / options.temperature;
  if (options.top_k > 0 && options.top_k < logits_BV.size(-1)) {
    const Tensor smallest =
        std::get<0>(logits_BV.topk(options.top_k)).narrow(-1, options.top_k - 1, 1);
    logits_BV = logits_BV.masked_fill(logits_BV < smallest, -INFINITY);
  }
  Tensor probabilities = logits_BV.softmax(-1);
  if (options.top_p < 1.0) {
    const auto [sorted, order] = probabilities.sort(-1, /*descending=*/true);
    const Tensor before =
        sorted.cumsum(-1) - sorted;  // mass of the tokens in front: the first always stays
    const Tensor kept = sorted.masked_fill(before >= options.top_p, 0.0);
    probabilities = torch::zeros_like(probabilities).scatter_(-1, order, kept);
  }
  return at::multinomial(probabilities, 1, false, generator).squeeze(-1);
}

}  // namespace

void SamplingOptions::validate() const {
  if (!(temperature >= 0.0))
    throw ConfigError(concat("temperature = ", temperature, ", allowed: 0 (greedy) or more"));
  if (top_k < 0) throw ConfigError(concat("top-k = ", top_k, ", allowed: 0 (all) or more"));
  if (!(top_p > 0.0 && top_p <= 1.0))
    throw ConfigError(concat("top-p = ", top_p, ", allowed: above 0, up to 1"));
}

GenerationResult generate(DecodeLoop& loop,
                          const Tensor& prompt_BT,
                          int64_t max_new_tokens,
                          const std::vector<int64_t>& end_tokens,
                          const SamplingOptions& options,
                          const std::function<void(const Tensor&)>& on_tokens) {
  require(prompt_BT.dim() == 2 && prompt_BT.size(1) > 0,
          "generate: the prompt must be [B, T] with T >= 1");
  options.validate();
  const torch::InferenceMode inference;
  torch::Generator generator =
      at::detail::createCPUGenerator(derive_seed(options.seed, SeedStream::kSampling));
  std::vector<Tensor> columns{prompt_BT};
  Tensor is_done = torch::zeros({prompt_BT.size(0)}, torch::kBool), last;  // on the CPU
  GenerationResult result;
  const Clock::time_point start = Clock::now();
  Clock::time_point decode_start = start;
  for (int64_t i = 0; i < max_new_tokens; ++i) {
    Tensor next;
    if (i == 0) {
      next = draw(loop.begin(prompt_BT), options, generator);
    } else if (options.temperature == 0.0) {
      if (i == 1) loop.start_greedy(last, max_new_tokens - 1);
      next = loop.greedy_step();
    } else {
      next = draw(loop.step(last), options, generator);
    }
    last = last.defined() ? torch::where(is_done, last, next) : next;
    for (const int64_t end : end_tokens) is_done = is_done.logical_or(last == end);
    columns.push_back(last.unsqueeze(-1));
    if (on_tokens) on_tokens(last);
    if (i == 0) result.prompt_seconds = seconds_since(start);
    if (i <= 1) {
      decode_start = Clock::now();
    } else {
      ++result.num_decoded;
    }
    if (!end_tokens.empty() && is_done.all().item<bool>()) break;
  }
  result.decode_seconds = seconds_since(decode_start);
  result.state_bytes = loop.state_bytes();
  result.tokens_BT = torch::cat(columns, 1);
  return result;
}

}  // namespace t2r::model
