// Steps of generation of whole models on a GPU: the few kernels of a bfloat16 step and the float32
// step against the CPU.
#include <gtest/gtest.h>
#include <torch/types.h>

#include "model/families/families.h"
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

DecoderConfig small_config(const std::string& family, std::optional<LinearAttentionConfig> linear) {
  DecoderConfig config = config_of(family);
  config.vocab_size = 100;
  config.hidden_size = 192;
  config.num_layers = 3;
  config.num_heads = 6;
  config.num_kv_heads = config.block.has_free_heads ? 2 : 6;
  config.head_dim = 32;
  config.intermediate_size = 512;
  config.max_positions = 64;
  config.initializer_range = 0.15;  // logits that differ
  config.linear = linear;
  if (family == "smollm3") config.block.layers_without_rope = {1};
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
  for (const std::string family : {"gpt2", "llama"}) {
    all.push_back({"softmax", small_config(family, std::nullopt)});
    all.push_back({"t2r", small_config(family, t2r)});
    all.push_back({"mixed", small_config(family, mixed)});
    all.push_back({"elu", small_config(family, elu)});
    all.push_back({"hedgehog", small_config(family, hedgehog)});
    all.push_back({"hedgehog, 36 features: no whole units of 16 bytes", small_config(family, odd)});
  }
  all.push_back({"a map per query head", small_config("llama", per_query)});
  for (const std::string family : {"qwen2", "qwen3", "olmo2", "smollm3"}) {
    all.push_back({"softmax", small_config(family, std::nullopt)});
    all.push_back({"t2r", small_config(family, t2r)});
    all.push_back({"hedgehog", small_config(family, hedgehog)});
  }
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
                   << variant.name << " " << variant.config.family << " " << batch);
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
