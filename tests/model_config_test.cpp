// config.json and generation_config.json: what is read, and how what is wrong is refused.

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <nlohmann/json.hpp>

#include "base/error.h"
#include "base/foreign_file.h"
#include "model/files/config_json.h"
#include "model/files/generation_defaults.h"
#include "tests/support.h"

namespace t2r::model {
namespace {

using test::TemporaryFolder;
using ::testing::AllOf;
using ::testing::ElementsAre;
using ::testing::HasSubstr;

/// The message of the E that `action` throws.
template <class E, class Action>
std::string refusal(const Action& action) {
  try {
    action();
  } catch (const E& error) {
    return error.what();
  }
  return "nothing was refused";
}

DecoderConfig config_with_ends() {
  DecoderConfig config;
  config.eos_token_ids = {2};
  config.bos_token_id = 1;
  return config;
}

TEST(GenerationDefaults, EndTokensOfGenerationConfigStandAboveConfig) {
  const auto parse = [](const std::string& json) {
    return parse_generation_config(json, "generation_config.json", config_with_ends());
  };
  EXPECT_THAT(parse(R"({"eos_token_id": [0, 84], "bos_token_id": 7})").eos_token_ids,
              ElementsAre(0, 84));
  EXPECT_EQ(parse(R"({"bos_token_id": 7})").bos_token_id, 7);
  EXPECT_THAT(parse(R"({"eos_token_id": 5})").eos_token_ids, ElementsAre(5));
  EXPECT_THAT(parse(R"({"eos_token_id": null})").eos_token_ids, ElementsAre(2));
  const GenerationDefaults sampled =
      parse(R"({"do_sample": true, "temperature": 0.6, "top_p": 0.9, "top_k": 20})");
  EXPECT_THAT(sampled.eos_token_ids, ElementsAre(2));
  EXPECT_EQ(sampled.bos_token_id, 1);
  EXPECT_EQ(sampled.do_sample, true);
  EXPECT_EQ(sampled.temperature, 0.6);
  EXPECT_EQ(sampled.top_p, 0.9);
  EXPECT_EQ(sampled.top_k, 20);
  EXPECT_FALSE(sampled.pad_token_id.has_value());
}

TEST(GenerationDefaults, AFolderNeedNotHaveTheFile) {
  const TemporaryFolder folder;
  const GenerationDefaults without = read_generation_config(folder.path(), config_with_ends());
  EXPECT_THAT(without.eos_token_ids, ElementsAre(2));
  EXPECT_FALSE(without.from_file);
  folder.write("generation_config.json", R"({"eos_token_id": [3, 4]})");
  const GenerationDefaults with = read_generation_config(folder.path(), config_with_ends());
  EXPECT_THAT(with.eos_token_ids, ElementsAre(3, 4));
  EXPECT_TRUE(with.from_file);
}

TEST(GenerationDefaults, WrongTypesNameFileFieldAndValue) {
  for (const auto& [json, found] : {std::pair{R"({"eos_token_id": "two"})", "\"two\""},
                                    {R"({"eos_token_id": [1, "x"]})", "[1,\"x\"]"},
                                    {R"({"eos_token_id": [1.5]})", "[1.5]"},
                                    {R"({"eos_token_id": 2.5})", "2.5"},
                                    {R"({"eos_token_id": true})", "true"},
                                    {R"({"eos_token_id": {}})", "{}"},
                                    {R"({"eos_token_id": 99999999999999999999})", "1e+20"}}) {
    EXPECT_THAT(
        refusal<DataError>([text = json] { parse_generation_config(text, "folder/file", {}); }),
        AllOf(HasSubstr("folder/file: field \"eos_token_id\" has the wrong type"),
              HasSubstr(found)))
        << json;
  }
  EXPECT_THAT(refusal<DataError>([&] { parse_generation_config("[]", "f", {}); }),
              HasSubstr("f: not a JSON object"));
}

using Json = nlohmann::ordered_json;

Json llama_json() {
  return {{"model_type", "llama"},
          {"vocab_size", 8},
          {"hidden_size", 8},
          {"num_hidden_layers", 2},
          {"num_attention_heads", 2},
          {"intermediate_size", 8}};
}

Json gpt2_json() {
  return {{"model_type", "gpt2"},
          {"vocab_size", 8},
          {"n_embd", 8},
          {"n_layer", 1},
          {"n_head", 2},
          {"n_positions", 16}};
}

DecoderConfig parse(const Json& json) {
  return parse_config(json.dump(), "config.json");
}

DecoderConfig parse_with(Json json, const char* changes) {
  json.update(Json::parse(changes));
  return parse(json);
}

/// The message with which a config that was changed so is refused.
template <class E>
std::string refusal_with(const Json& json, const std::string& changes) {
  return refusal<E>([&] { parse_with(json, changes.c_str()); });
}

TEST(ConfigJson, RopeScalingStandsAboveRopeParameters) {
  // transformers 5: rope_scaling unless it is empty; no base is taken from the other section.
  constexpr const char* kBoth = R"({"rope_parameters": {"rope_type": "default", "rope_theta": 1e4},
      "rope_scaling": {"type": "linear", "factor": 4}})";
  EXPECT_EQ(parse_with(llama_json(), kBoth).rope, (RopeConfig{.type = "linear", .factor = 4.0}));
  for (const char* empty : {"null", "{}"}) {
    const std::string changes =
        concat(R"({"rope_parameters": {"rope_type": "linear", "factor": 2, "rope_theta": 5},)"
               R"( "rope_scaling": )",
               empty,
               "}");
    EXPECT_EQ(parse_with(llama_json(), changes.c_str()).rope,
              (RopeConfig{.theta = 5.0, .type = "linear", .factor = 2.0}));
  }
  EXPECT_EQ(parse_with(llama_json(), R"({"rope_theta": 7, "rope_scaling": {"rope_type": "default"},
      "rope_parameters": {"rope_theta": 9}})")
                .rope.theta,
            7.0);
  EXPECT_THAT(refusal_with<ConfigError>(llama_json(), R"({"rope_parameters": {"rope_theta": 500000},
      "rope_scaling": {"type": "linear", "factor": 4}})"),
              AllOf(HasSubstr("rope_scaling"),
                    HasSubstr("beside rope_parameters"),
                    HasSubstr("rope_parameters: 500000")));
}

TEST(ConfigJson, Llama3RopeTakesItsFirstContextFromWhereTransformersDoes) {
  const std::string llama3 = R"("rope_scaling": {"rope_type": "llama3", "factor": 8,
      "low_freq_factor": 1, "high_freq_factor": 4)";
  const auto original = [&](const std::string& inner, const std::string& outer) {
    return parse_with(llama_json(), concat("{", outer, llama3, inner, "}}").c_str())
        .rope.original_max_positions;
  };
  EXPECT_EQ(original(R"(, "original_max_position_embeddings": 64)", ""), 64);
  EXPECT_EQ(original("", R"("max_position_embeddings": 512, )"), 512);
  EXPECT_EQ(original(R"(, "original_max_position_embeddings": 64)",
                     R"("original_max_position_embeddings": 32, )"),
            32);
}

TEST(ConfigJson, OptionsThatT2rDoesNotComputeAreRefusedByName) {
  for (const char* changes : {R"({"sliding_window": 1024, "max_position_embeddings": 4096})",
                              R"({"sliding_window": 1024})",
                              R"({"layer_types": ["full_attention", "sliding_attention"]})",
                              R"({"attn_logit_softcapping": 50.0})",
                              R"({"final_logit_softcapping": 30.0})",
                              R"({"partial_rotary_factor": 0.5})",
                              R"({"embedding_multiplier": 12})",
                              R"({"logits_scaling": 8.0})",
                              R"({"num_local_experts": 8})",
                              R"({"attention_chunk_size": 8192})",
                              R"({"use_qk_norm": true})",
                              R"({"is_causal": false})",
                              R"({"per_layer_config": {"0": {"num_key_value_heads": 1}}})",
                              R"({"add_cross_attention": true})"}) {
    const std::string name = Json::parse(changes).items().begin().key();
    EXPECT_THAT(refusal_with<ConfigError>(llama_json(), changes),
                AllOf(HasSubstr("config.json: " + name + " = "), HasSubstr("allowed: ")));
    EXPECT_THAT(refusal_with<ConfigError>(gpt2_json(), changes), HasSubstr(name));
  }
  for (const char* type : {"yarn", "dynamic", "longrope", "su"}) {
    const std::string changes =
        concat(R"({"rope_scaling": {"factor": 2, "type": ")", type, R"("}})");
    EXPECT_THAT(refusal_with<ConfigError>(llama_json(), changes),
                AllOf(HasSubstr("rope_scaling: rope_type"), HasSubstr(type), HasSubstr("llama3")));
  }
  EXPECT_THAT(
      refusal_with<ConfigError>(
          llama_json(),
          R"({"rope_parameters": {"full_attention": {"rope_type": "linear", "factor": 2}}})"),
      AllOf(HasSubstr("full_attention"), HasSubstr("one rotation for all layers")));
  // Off, or without effect on what is computed.
  for (const char* changes :
       {R"({"sliding_window": null})",
        R"({"sliding_window": 4096, "max_position_embeddings": 4096})",
        R"({"sliding_window": 64, "use_sliding_window": false})",
        R"({"layer_types": ["full_attention", "full_attention"]})",
        R"({"attn_logit_softcapping": null, "is_encoder_decoder": false})",
        R"({"pretraining_tp": 2, "use_cache": false, "attention_dropout": 0.1})",
        R"({"reorder_and_upcast_attn": true, "quantization_config": null})"})
    EXPECT_EQ(parse_with(llama_json(), changes).hidden_size, 8) << changes;
}

TEST(ConfigJson, QuantizedModelsAreRefusedByName) {
  for (const char* section : {"quantization_config", "compression_config", "quantization"})
    EXPECT_THAT(refusal_with<ConfigError>(
                    llama_json(), concat(R"({")", section, R"(": {"quant_method": "awq"}})")),
                AllOf(HasSubstr(section), HasSubstr("\"awq\""), HasSubstr("quantized")));
}

TEST(ConfigJson, NumbersOutOfRangeAreRefusedWithNameAndValue) {
  const auto wrong = [](const Json& json, const char* field, const char* value) {
    const std::string changes = concat(R"({")", field, R"(": )", value, "}");
    const std::string message = refusal_with<ConfigError>(json, changes);
    EXPECT_THAT(message, AllOf(HasSubstr(field), HasSubstr("allowed: "))) << changes;
  };
  for (const char* value : {"-1", "0", "-0.0"}) {
    wrong(llama_json(), "rms_norm_eps", value);
    wrong(llama_json(), "rope_theta", value);
    wrong(gpt2_json(), "layer_norm_epsilon", value);
  }
  for (const char* value : {"0", "-3", "4611686018427387904", "9223372036854775807"}) {
    for (const char* field : {"vocab_size",
                              "hidden_size",
                              "num_hidden_layers",
                              "num_attention_heads",
                              "num_key_value_heads",
                              "head_dim",
                              "intermediate_size",
                              "max_position_embeddings"})
      wrong(llama_json(), field, value);
    for (const char* field :
         {"vocab_size", "n_embd", "n_layer", "n_head", "n_inner", "n_positions"})
      wrong(gpt2_json(), field, value);
  }
  wrong(llama_json(), "num_attention_heads", "3");
  wrong(llama_json(), "num_key_value_heads", "3");
  wrong(llama_json(), "head_dim", "3");
  wrong(gpt2_json(), "n_head", "3");
  wrong(llama_json(), "initializer_range", "-0.1");
  wrong(gpt2_json(), "hidden_size", "16");  // beside n_embd
  EXPECT_EQ(parse_with(llama_json(), R"({"num_attention_heads": 3, "head_dim": 4})").head_dim, 4);
  for (const char* changes : {R"({"rope_scaling": {"type": "linear", "factor": 0}})",
                              R"({"rope_scaling": {"type": "linear", "factor": -2.5}})",
                              R"({"rope_scaling": {"type": "llama3", "factor": 8,
                                  "low_freq_factor": 4, "high_freq_factor": 4}})",
                              R"({"rope_scaling": {"type": "llama3", "factor": 8,
                                  "low_freq_factor": 0, "high_freq_factor": 4}})"})
    EXPECT_THAT(refusal_with<ConfigError>(llama_json(), changes), HasSubstr("factor")) << changes;
}

TEST(ConfigJson, WrongTypesNameFieldAndValue) {
  for (const auto& [changes, found] :
       {std::pair{R"({"hidden_size": 8.9})", "8.9, wanted an integer"},
        {R"({"hidden_size": 8.0})", "8.0, wanted an integer"},
        {R"({"hidden_size": true})", "true, wanted an integer"},
        {R"({"hidden_size": "8"})", "\"8\", wanted an integer"},
        {R"({"hidden_size": 1e30})", "wanted an integer"},
        {R"({"hidden_size": 18446744073709551615})", "below 2^63"},
        {R"({"rms_norm_eps": "1e-6"})", "wanted a number"},
        {R"({"rms_norm_eps": true})", "true, wanted a number"},
        {R"({"tie_word_embeddings": 1})", "1, wanted true or false"},
        {R"({"hidden_act": 3})", "3, wanted a string"},
        {R"({"eos_token_id": [1, null]})", "list of integers"},
        {R"({"rope_scaling": 4})", "4, wanted an object"},
        {R"({"t2r": []})", "[], wanted an object"}})
    EXPECT_THAT(refusal_with<DataError>(llama_json(), changes), HasSubstr(found)) << changes;
}

TEST(ConfigJson, TokensOutsideTheVocabularyAreKept) {
  const DecoderConfig config =
      parse_with(llama_json(), R"({"eos_token_id": [2, -1, 4000000000], "bos_token_id": 99})");
  EXPECT_THAT(config.eos_token_ids, ElementsAre(2, -1, 4000000000));
  EXPECT_EQ(config.bos_token_id, 99);
}

TEST(ConfigJson, Gpt2SizesMayHaveTheNamesThatOtherModelsHave) {
  const DecoderConfig config = parse(Json{{"model_type", "gpt2"},
                                          {"vocab_size", 8},
                                          {"hidden_size", 8},
                                          {"num_hidden_layers", 1},
                                          {"num_attention_heads", 2},
                                          {"max_position_embeddings", 16}});
  EXPECT_EQ(config, parse(gpt2_json()));
}

LinearAttentionConfig some_linear() {
  return {.feature_map = "hedgehog",
          .feature_size = 6,
          .denominator_floor = 0.015625,
          .map_per_query_head = true,
          .softmax_layers = {1}};
}

TEST(ConfigJson, WhatIsWrittenIsReadBackUnchanged) {
  constexpr const char* kLlama3 = R"({"rope_scaling": {"rope_type": "llama3", "factor": 8.5,
      "low_freq_factor": 1, "high_freq_factor": 4, "original_max_position_embeddings": 64},
      "eos_token_id": [1, 2], "tie_word_embeddings": true, "rms_norm_eps": 1.1e-7})";
  for (const Json& json : {llama_json(), gpt2_json()}) {
    for (const char* changes :
         {"{}", kLlama3, R"({"rope_scaling": {"type": "linear", "factor": 3}})"}) {
      DecoderConfig config = parse_with(json, changes);
      Json base = json;
      base.update(Json::parse(changes));
      for (const bool is_linear : {false, true}) {
        if (is_linear && config.num_layers == 2) config.linear = some_linear();
        for (const bool is_tied : {false, true}) {
          config.tied_embeddings = is_tied;
          EXPECT_EQ(parse_config(write_config(config, base.dump()), "again"), config) << changes;
          EXPECT_EQ(parse_config(write_config(config, ""), "anew"), config) << changes;
        }
      }
    }
  }
}

TEST(ConfigJson, AConvertedModelHasAModelTypeOfItsOwn) {
  DecoderConfig config = parse(llama_json());
  config.linear = some_linear();
  const std::string text = write_config(config, llama_json().dump(), DType::bf16);
  Json json = Json::parse(text);
  EXPECT_EQ(json["model_type"], "t2r");
  EXPECT_EQ(json["architectures"], Json::array({"T2RForCausalLM"}));
  EXPECT_EQ(json["t2r"]["base_model_type"], "llama");
  EXPECT_EQ(json["dtype"], "bfloat16");
  EXPECT_EQ(write_config(config, text, DType::bf16), text);
  // Without the section it says nothing, and with a family's name beside it, it contradicts itself.
  json["model_type"] = "llama";
  EXPECT_EQ(parse(json), config);
  json["t2r"]["base_model_type"] = "gpt2";
  EXPECT_THAT(refusal<ConfigError>([&] { parse(json); }), HasSubstr("base_model_type = \"gpt2\""));
  json["t2r"].erase("base_model_type");
  EXPECT_EQ(parse(json), config);
  json["model_type"] = "t2r";
  EXPECT_THAT(refusal<DataError>([&] { parse(json); }), HasSubstr("base_model_type"));
  json.erase("t2r");
  EXPECT_THAT(refusal<DataError>([&] { parse(json); }), HasSubstr("\"t2r\""));
}

TEST(ConfigJson, LayersThatKeepSoftmaxMayStandInAnyOrderAndOnce) {
  Json json = llama_json();
  json["t2r"] = {{"feature_map", "t2r"}, {"feature_size", 4}, {"softmax_layers", {1, 0}}};
  const DecoderConfig config = parse(json);
  EXPECT_FALSE(config.is_linear_layer(0));
  EXPECT_FALSE(config.is_linear_layer(1));
  json["t2r"]["softmax_layers"] = {1, 1};
  EXPECT_THAT(refusal<ConfigError>([&] { parse(json); }), HasSubstr("each layer once"));
}

TEST(ConfigJson, TheTypeStandsUnderTheNameThatTheSourceUses) {
  const DecoderConfig config = parse(llama_json());
  const auto types = [&](const char* changes) {
    Json base = llama_json();
    base.update(Json::parse(changes));
    const Json json = Json::parse(write_config(config, base.dump(), DType::f16));
    return concat(json.value("dtype", "-"), " ", json.value("torch_dtype", "-"));
  };
  EXPECT_EQ(types("{}"), "float16 -");
  EXPECT_EQ(types(R"({"dtype": "bfloat16"})"), "float16 -");
  EXPECT_EQ(types(R"({"torch_dtype": "bfloat16"})"), "- float16");
  EXPECT_EQ(types(R"({"dtype": "float32", "torch_dtype": "bfloat16"})"), "float16 float16");
}

TEST(ForeignFile, SaysWhatItIs) {
  const auto what = [](std::string_view begin) {
    return foreign_content(begin).value_or("its own");
  };
  EXPECT_THAT(what("version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 12\n"),
              AllOf(HasSubstr("Git LFS pointer"), HasSubstr("git lfs pull")));
  for (const char* page : {"<!DOCTYPE html>\n<html>", "\n  <html lang=en>", "\xEF\xBB\xBF<HTML>"})
    EXPECT_THAT(what(page), HasSubstr("web page")) << page;
  EXPECT_THAT(what({"PK\x03\x04\x00\x00\x08\x08\x00\x00", 10}), HasSubstr("torch.save"));
  EXPECT_THAT(what("\x80\x02}q\x01(X\x0a"), HasSubstr("pickle"));
  EXPECT_THAT(what("GGUF\x03"), HasSubstr("GGUF"));
  EXPECT_EQ(what(""), "its own");
  EXPECT_EQ(what(R"({"a": 1})"), "its own");
  // 640 bytes of header: the length begins as a pickle does.
  EXPECT_EQ(what({"\x80\x02\x00\x00\x00\x00\x00\x00{\"a", 11}), "its own");
}

}  // namespace
}  // namespace t2r::model
