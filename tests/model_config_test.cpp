// config.json and generation_config.json: what is read, and how what is wrong is refused.

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "base/error.h"
#include "base/foreign_file.h"
#include "model/generation_defaults.h"
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
