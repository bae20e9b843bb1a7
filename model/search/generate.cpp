#include "model/search/generate.h"

#include <chrono>

#include "base/error.h"

namespace t2r::model {
namespace {

using torch::Tensor;
using Clock = std::chrono::steady_clock;

double seconds_since(Clock::time_point start) {
  return std::chrono::duration<double>(Clock::now() - start).count();
}

}  // namespace

GenerationResult generate(DecodeLoop& loop,
                          const Tensor& prompt_BT,
                          int64_t max_new_tokens,
                          const std::vector<int64_t>& end_tokens,
                          const SamplingOptions& options,
                          const std::function<bool(const Tensor&)>& on_tokens) {
  require(prompt_BT.dim() == 2 && prompt_BT.size(1) > 0,
          "generate: the prompt must be [B, T] with T >= 1");
  options.validate();
  const torch::InferenceMode inference;
  std::vector<Tensor> columns{prompt_BT};
  Tensor is_done = torch::zeros({prompt_BT.size(0)}, torch::kBool), last;  // on the CPU
  GenerationResult result;
  const Clock::time_point start = Clock::now();
  Clock::time_point decode_start = start;
  for (int64_t i = 0; i < max_new_tokens; ++i) {
    if (i == 1) loop.start(last, options, max_new_tokens - 1);
    const Tensor next =
        i == 0 ? draw_tokens(loop.begin(prompt_BT), prompt_BT.size(1), options) : loop.next();
    last = last.defined() ? torch::where(is_done, last, next) : next;
    for (const int64_t end : end_tokens) is_done = is_done.logical_or(last == end);
    columns.push_back(last.unsqueeze(-1));
    const bool goes_on = !on_tokens || on_tokens(last);
    if (i == 0) result.prompt_seconds = seconds_since(start);
    if (i <= 1) {
      decode_start = Clock::now();
    } else {
      ++result.num_decoded;
    }
    if (!goes_on || (!end_tokens.empty() && is_done.all().item<bool>())) break;
  }
  result.decode_seconds = seconds_since(decode_start);
  result.state_bytes = loop.state_bytes();
  result.tokens_BT = torch::cat(columns, 1);
  return result;
}

}  // namespace t2r::model
