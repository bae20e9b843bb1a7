#include "model/search/sampling.h"

#include <ATen/Parallel.h>

#include "base/error.h"
#include "base/seed.h"
#include "base/text.h"
#include "model/kernels/cpu/draw_cpu.h"

namespace t2r::model {

using torch::Tensor;

void SamplingOptions::validate() const {
  if (!(temperature >= 0.0))
    throw ConfigError(not_allowed("temperature", number_text(temperature), "0 or more"));
  if (top_k < 0) throw ConfigError(not_allowed("top-k", std::to_string(top_k), "0 or more"));
  if (!(top_p > 0.0 && top_p <= 1.0))
    throw ConfigError(not_allowed("top-p", number_text(top_p), "above 0, up to 1"));
}

uint64_t SamplingOptions::stream_seed() const {
  return derive_seed(seed, SeedStream::kSampling);
}

Tensor draw_tokens(const Tensor& logits_NV, int64_t position, const SamplingOptions& options) {
  if (options.temperature == 0.0) {
    const Tensor first_N1 = logits_NV.argmax(-1, /*keepdim=*/true);  // of a row with NaN, the NaN
    const Tensor is_finite_N1 = logits_NV.gather(-1, first_N1).isfinite();
    const Tensor tokens_N = torch::where(is_finite_N1, first_N1, -1).squeeze(-1).cpu();
    check_drawn(tokens_N);
    return tokens_N;
  }
  const Tensor logits = logits_NV.to(torch::kCPU, torch::kFloat32).contiguous();
  const Tensor tokens_N = torch::empty({logits.size(0)}, torch::kInt64);
  const auto rule = t2r::kernels::DrawRule::make(
      options.temperature, options.top_k, options.top_p, options.stream_seed());
  const int64_t size = logits.size(1);
  const float* const from = logits.const_data_ptr<float>();
  int64_t* const to = tokens_N.mutable_data_ptr<int64_t>();
  at::parallel_for(0, logits.size(0), 1, [&](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row)
      to[row] = t2r::kernels::draw_token(from + row * size, size, rule, row, position);
  });
  check_drawn(tokens_N);
  return tokens_N;
}

void check_drawn(const Tensor& tokens_N) {
  const int64_t* const tokens = tokens_N.const_data_ptr<int64_t>();
  for (int64_t row = 0; row < tokens_N.size(0); ++row) {
    if (tokens[row] < 0)
      throw NumericError(concat("sequence ",
                                row,
                                ": no token can be drawn, as a logit is NaN or the largest one is "
                                "not finite"));
  }
}

}  // namespace t2r::model
