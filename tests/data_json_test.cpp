#include "base/json.h"

#include <gtest/gtest.h>

#include <string>
#include <string_view>

#include "base/error.h"
#include "base/quoted_name.h"
#include "tests/data_shards.h"

namespace t2r {
namespace {

using nlohmann::ordered_json;
using test::message_of;

std::string refusal_of(std::string_view text, JsonLimits limits = kConfigJsonLimits) {
  return message_of<DataError>([&] { parse_json(text, "some.json", limits); });
}

void expect_mentions(const std::string& message, const std::vector<std::string>& parts) {
  for (const std::string& part : parts) {
    EXPECT_NE(message.find(part), std::string::npos) << "\"" << part << "\" not in: " << message;
  }
}

TEST(ParseJson, GivesWhatThePlainParserGives) {
  for (const std::string_view text : {R"({"b": [1, -2, 1.5, true, null, "x"], "a": {"c": {}}})",
                                      R"([[], {}, [[1]], {"k": [{"l": 2}, 3]}])",
                                      "18446744073709551615",
                                      "-9223372036854775808",
                                      R"("\u00e9\ud83d\ude00")",
                                      "  false "}) {
    const ordered_json parsed = parse_json(text, "some.json");
    EXPECT_EQ(parsed, ordered_json::parse(text)) << text;
    EXPECT_EQ(parsed.dump(), ordered_json::parse(text).dump()) << "order of keys, kinds: " << text;
  }
}

TEST(ParseJson, RefusesDepthWithoutRecursion) {
  expect_mentions(refusal_of(std::string(200'000, '[')), {"some.json", "byte 64", "64 deep"});
  std::string objects;
  for (int i = 0; i < 200'000; ++i) objects += R"({"a":)";
  expect_mentions(refusal_of(objects), {"some.json", "64 deep"});
  const std::string allowed = std::string(64, '[') + std::string(64, ']');
  EXPECT_EQ(parse_json(allowed, "some.json").dump(), allowed);
}

TEST(ParseJson, RefusesWhatParsersLetPass) {
  expect_mentions(refusal_of(R"({"x": {"a": 1, "b": 2, "a": 3}})"),
                  {"some.json", "byte 25", "key \"a\"", "twice"});
  expect_mentions(refusal_of(std::string_view("{}\0{}", 5)), {"byte 2", "NUL"});
  expect_mentions(refusal_of("{} x"), {"byte 3", "not valid JSON"});
  expect_mentions(refusal_of("\"\xC3\x28\""), {"byte 2", "not valid JSON"});
  expect_mentions(refusal_of(R"({"a": 1)"), {"not valid JSON"});
  expect_mentions(refusal_of(""), {"not valid JSON"});
  expect_mentions(refusal_of("1e999"), {"not valid JSON"});
  expect_mentions(refusal_of("NaN"), {"not valid JSON"});
  expect_mentions(refusal_of(R"({"a": 1, "b": 2, "c": 3})", {.max_depth = 8, .max_keys = 2}),
                  {"at most 2 keys"});
}

TEST(ParseJson, TakesAVocabularyOfAMillionTokensInLinearTime) {
  std::string text = "{";
  for (int i = 0; i < 1'000'000; ++i) text += concat(i == 0 ? "" : ",", "\"t", i, "\":", i);
  text += "}";
  const ordered_json parsed = parse_json(text, "some.json", kVocabularyJsonLimits);
  EXPECT_EQ(parsed.size(), 1'000'000u);
  EXPECT_EQ(parsed.back(), 999'999);
  expect_mentions(refusal_of(text), {"at most 65536 keys"});
}

TEST(QuotedName, EscapesAndCuts) {
  EXPECT_EQ(quoted_name("a\n\x1B[31m\"\xFF"), "\"a\\n\\u001b[31m\\\"\\ufffd\"");
  EXPECT_EQ(quoted_name(std::string(100, 'x')), "\"" + std::string(80, 'x') + "...\"");
}

}  // namespace
}  // namespace t2r
