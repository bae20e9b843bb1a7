// Steps of generation of whole models on a GPU: the few kernels of a bfloat16 step and the float32
// step against the CPU.
#include <gtest/gtest.h>
#include <torch/types.h>

#include "model/nets/decoder_lm.h"
#include "tests/gpu_support.h"

namespace t2r::model {
namespace {

using test::relative_error;
using torch::Tensor;

struct Variant {
  const char* name;
  DecoderConfig config;
};

DecoderConfig config_of(Family family, std::optional<LinearAttentionConfig> linear) {
  const bool is_gpt2 = family == Family::kGpt2;
  DecoderConfig config{.family = family,
                       .vocab_size = 100,
                       .hidden_size = 192,
                       .num_layers = 3,
                       .num_heads = 6,
                       .num_kv_heads = is_gpt2 ? 6 : 2,
                       .head_dim = 32,
                       .intermediate_size = 512,
                       .max_positions = 64,
                       .activation = is_gpt2 ? Activation::kGeluTanh : Activation::kSilu,
                       .rope = {}};
  config.attention_bias = config.mlp_bias = is_gpt2;
  config.tied_embeddings = is_gpt2;
  config.initializer_range = 0.15;  // logits that differ
  config.linear = linear;
  return config;
}

std::vector<Variant> variants() {
  const LinearAttentionConfig t2r{.feature_size = 16},
      mixed{.feature_size = 16, .softmax_layers = {1}},
      elu{.feature_map = "elu", .feature_size = 32},
      hedgehog{.feature_map = "hedgehog", .feature_size = 64},
      odd{.feature_map = "hedgehog", .feature_size = 36},
      per_query{.feature_size = 16, .map_per_query_head = true};
  std::vector<Variant> all;
  for (const Family family : {Family::kGpt2, Family::kLlama}) {
    all.push_back({"softmax", config_of(family, std::nullopt)});
    all.push_back({"t2r", config_of(family, t2r)});
    all.push_back({"mixed", config_of(family, mixed)});
    all.push_back({"elu", config_of(family, elu)});
    all.push_back({"hedgehog", config_of(family, hedgehog)});
    all.push_back({"hedgehog, 36 features: no whole units of 16 bytes", config_of(family, odd)});
  }
  all.push_back({"a map per query head", config_of(Family::kLlama, per_query)});
  return all;
}

/// Logits [B, T, V] in float32, on the CPU: of the prompt, then of each token.
Tensor logits_token_by_token(const Variant& variant,
                             const Placement& placement,
                             const Tensor& tokens_BT,
                             int64_t prompt) {
  DecoderLM model(variant.config);
  model.initialize(3);
  const torch::InferenceMode inference;
  model.parameters().move_to(placement);
  model.prepare_generation();
  DecoderState state = model.new_state();
  std::vector<Tensor> logits;
  for (int64_t t = 0; t < tokens_BT.size(1); t += t == 0 ? prompt : 1) {
    const Tensor tokens =
        tokens_BT.narrow(1, t, t == 0 ? prompt : 1).to(placement.device).contiguous();
    logits.push_back(model.next_logits(tokens, state).to(torch::kCPU, torch::kFloat32));
  }
  EXPECT_EQ(state.position, tokens_BT.size(1));
  if (placement.device.is_cuda()) {
    EXPECT_EQ(state.device_position.item<int64_t>(), tokens_BT.size(1));
  }
  return torch::stack(logits, 1);
}

TEST(GpuGeneration, StepsGiveTheCpusLogits) {
  for (const Variant& variant : variants()) {
    for (const auto& [batch, prompt] : {std::pair<int64_t, int64_t>{1, 1},
                                        {3, 7},
                                        {20, 7}}) {  // 20: more than the few rows of a step
      SCOPED_TRACE(testing::Message()
                   << variant.name
                   << (variant.config.family == Family::kGpt2 ? " gpt2 " : " llama ") << batch);
      torch::manual_seed(4);
      const Tensor tokens = torch::randint(100, {batch, 40}, torch::kInt64);
      const Tensor exact = logits_token_by_token(variant, {}, tokens, prompt);
      const torch::Device gpu(torch::kCUDA, 0);
      EXPECT_LE(relative_error(
                    logits_token_by_token(variant, {gpu, torch::kFloat32}, tokens, prompt), exact),
                2e-5);
      EXPECT_LE(relative_error(
                    logits_token_by_token(variant, {gpu, torch::kBFloat16}, tokens, prompt), exact),
                3e-2);
    }
  }
}

}  // namespace
}  // namespace t2r::model
