// What the families' config.json files mean where they leave something out, and what is refused.

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <nlohmann/json.hpp>

#include "base/error.h"
#include "model/files/config_json.h"
#include "tests/model_support.h"

namespace t2r::model {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;

using Json = nlohmann::ordered_json;

Json small_json(const std::string& family) {
  return {{"model_type", family},
          {"vocab_size", 8},
          {"hidden_size", 128},
          {"num_hidden_layers", 8},
          {"num_attention_heads", 64},
          {"intermediate_size", 8}};
}

DecoderConfig parse_with(const std::string& family, const char* changes) {
  Json json = small_json(family);
  json.update(Json::parse(changes));
  return parse_config(json.dump(), "config.json");
}

std::string refusal_with(const std::string& family, const char* changes) {
  try {
    parse_with(family, changes);
  } catch (const ConfigError& error) {
    return error.what();
  }
  return "nothing was refused";
}

TEST(Families, ANewModelsConfigIsReadBackAsItWas) {
  for (const std::string& family : family_names()) {
    DecoderConfig config = test::tiny_config(family);
    EXPECT_EQ(parse_config(write_config(config, "", std::nullopt), "config.json"), config)
        << family;
    config.linear = LinearAttentionConfig{.feature_size = 8};
    EXPECT_EQ(parse_config(write_config(config, "", std::nullopt), "config.json"), config)
        << family;
  }
}

TEST(Families, WhatAConfigLeavesOutIsWhatTransformersTakes) {
  EXPECT_EQ(parse_with("qwen2", "{}").num_kv_heads, 32);
  EXPECT_EQ(parse_with("qwen2", R"({"num_key_value_heads": null})").num_kv_heads, 64);
  EXPECT_EQ(parse_with("qwen2", "{}").head_dim, 2);
  EXPECT_EQ(parse_with("qwen3", "{}").head_dim, 128);
  EXPECT_EQ(parse_with("mistral", R"({"sliding_window": null})").num_kv_heads, 8);
  EXPECT_EQ(parse_with("olmo2", "{}").norm_eps, 1e-5);
  EXPECT_EQ(parse_with("qwen2", "{}").norm_eps, 1e-6);
  EXPECT_EQ(parse_with("smollm3", "{}").num_kv_heads, 4);
  EXPECT_EQ(parse_with("smollm3", "{}").rope.theta, 2e6);
  EXPECT_TRUE(parse_with("smollm3", "{}").tied_embeddings);
  EXPECT_EQ(parse_with("smollm3", "{}").initializer_range, 0.02);
  EXPECT_EQ(parse_with("starcoder2", "{}").num_kv_heads, 2);
  EXPECT_EQ(parse_with("starcoder2", "{}").max_positions, 4096);
  EXPECT_EQ(parse_with("starcoder2", "{}").norm_eps, 1e-5);
  EXPECT_EQ(parse_with("starcoder2", R"({"norm_epsilon": 0.5})").norm_eps, 0.5);
  EXPECT_EQ(parse_with("starcoder2", "{}").block.activation, Activation::kGeluTanh);
  EXPECT_EQ(parse_with("starcoder2", "{}").initializer_range, 0.018042);
  EXPECT_TRUE(parse_with("starcoder2", "{}").tied_embeddings);
}

TEST(Families, ANewModelHasTheDefaultsOfItsClass) {
  for (const std::string family : {"mistral", "olmo2", "qwen2", "qwen3", "smollm3", "starcoder2"}) {
    const DecoderConfig made = config_of(family, 4);
    const DecoderConfig read = parse_with(family, R"({"sliding_window": null})");
    EXPECT_EQ(made.norm_eps, read.norm_eps) << family;
    EXPECT_EQ(made.rope.theta, read.rope.theta) << family;
  }
}

TEST(Families, BiasesAreWhereAFamilyHasThem) {
  EXPECT_TRUE(parse_with("qwen2", "{}").block.qkv_bias);
  EXPECT_FALSE(parse_with("qwen2", "{}").block.output_bias);
  for (const char* family : {"llama", "olmo2", "qwen3", "smollm3"}) {
    EXPECT_FALSE(parse_with(family, "{}").block.qkv_bias) << family;
    const BlockSpec block = parse_with(family, R"({"attention_bias": true})").block;
    EXPECT_TRUE(block.qkv_bias && block.output_bias) << family;
  }
  for (const bool has : {true, false}) {
    const BlockSpec block = parse_with("starcoder2", has ? "{}" : R"({"use_bias": false})").block;
    EXPECT_EQ(block.qkv_bias, has);
    EXPECT_EQ(block.output_bias, has);
    EXPECT_EQ(block.mlp_bias, has);
  }
}

TEST(Families, LayersWithoutRopeAreNamedOrCounted) {
  const auto layers = [](const char* changes) {
    return parse_with("smollm3", changes).block.layers_without_rope;
  };
  EXPECT_THAT(layers("{}"), ElementsAre(3, 7));
  EXPECT_THAT(layers(R"({"no_rope_layer_interval": 3})"), ElementsAre(2, 5));
  EXPECT_THAT(layers(R"({"no_rope_layers": [0, 1, 1, 1, 1, 1, 1, 0]})"), ElementsAre(0, 7));
  // A list stands above the interval, and may be longer than the model.
  EXPECT_THAT(layers(R"({"no_rope_layers": [1, 1, 1, 1, 1, 1, 1, 1, 0]})"), IsEmpty());
  EXPECT_THAT(refusal_with("smollm3", R"({"no_rope_layers": [1, 0]})"),
              HasSubstr("no_rope_layers = [1,0], allowed: one for each of num_hidden_layers = 8"));
  EXPECT_THAT(refusal_with("smollm3", R"({"no_rope_layer_interval": 0})"),
              HasSubstr("no_rope_layer_interval = 0, allowed: 1 or more"));
  EXPECT_THAT(refusal_with("llama", R"({"no_rope_layers": [1, 0]})"), HasSubstr("no_rope_layers"));
}

TEST(Families, AWindowThatIsNotSaidIsTheFamilys) {
  EXPECT_THAT(refusal_with("mistral", "{}"), HasSubstr("sliding_window = 4096 (not said)"));
  EXPECT_EQ(refusal_with("mistral", R"({"max_position_embeddings": 4096})"), "nothing was refused");
  EXPECT_EQ(refusal_with("qwen2", "{}"), "nothing was refused");
  EXPECT_THAT(refusal_with("qwen2", R"({"use_sliding_window": true, "max_window_layers": 7})"),
              HasSubstr("sliding_window = 4096 (not said)"));
  EXPECT_EQ(refusal_with("qwen2", R"({"use_sliding_window": true, "max_window_layers": 8})"),
            "nothing was refused");
}

}  // namespace
}  // namespace t2r::model
