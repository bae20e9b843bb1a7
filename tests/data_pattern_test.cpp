#include "data/unicode/pattern.h"

#include <gtest/gtest.h>

#include <string>
#include <string_view>
#include <vector>

#include "base/error.h"
#include "data/tokenizers/pre_tokenizer.h"
#include "tests/data_shards.h"

namespace t2r::data {
namespace {

using test::message_of;
using Pieces = std::vector<std::string>;

struct PatternCase {
  std::string pattern;
  Pieces pieces;  ///< together they are the text
};

/// What tokenizers 0.23.3 gives: pre_tokenizers.Split(Regex(pattern), "isolated").
const std::vector<PatternCase>& pattern_cases() {
  static const std::vector<PatternCase> cases = {
      // clang-format off
    {R"re('(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}++|\p{N}{1,3}+| ?[^\s\p{L}\p{N}]++)re"
       R"re([\r\n]*+|\s++$|\s*[\r\n]|\s+(?!\S)|\s)re",
     {"He", "'LL", " pay", " ", "1234567", " (", "ok", ")\012", "  \012", " ", "12", " x", "  "}},
    {R"re(a{2}?b)re",
     {"aab", " ", "b"}},
    {R"re(a{,2})re",
     {"c", "aa", "a", "d"}},
    {R"re(^\s+)re",
     {"  ", "a\012", "  ", "b\012", "\012 ", "c"}},
    {R"re(\s+$)re",
     {"a", "  ", "\012 b", "  \012"}},
    {R"re(\w+)re",
     {"e\314\201a\314\201", " ", "\302\262x_y", "\342\200\215", "z\340\244\225\340\244\277"}},
    {R"re([\w]+)re",
     {"a", "\302\262 ", "e\314\201"}},
    {R"re(\b)re",
     {"a\314\201b", " ", "c\302\275"}},
    {R"re(\h+)re",
     {"fade", " no ", "12", " ", "face"}},
    {R"re([\p{L}&&[^a-z]]+)re",
     {"abc", "DEF", "g", "\303\211\344\270\255"}},
    {R"re( ?[^(\s|[.,!?\u2026\u3002\uff0c\u3001\u0964\u06d4\u060c])]+)re",
     {" ab", "(", "c", "|", "d", ")", " e", "\357\274\214", "f", "...", " g"}},
    {R"re([\p{Han}]+|[^\p{Han}])re",
     {"a", "b", "\344\270\255\346\226\207", "c", "\343\201\202"}},
    {R"re(x(?i)a|b)re",
     {"xA", " B ", "xB", " b"}},
    {R"re((?m:a.)b)re",
     {"a\012b", " ", "a.b"}},
    {R"re(a.)re",
     {"a\012", "a\342\200\250"}},
    {R"re([[:punct:]]+)re",
     {"a", "+", "b", "$-", "c", "\302\251\343\200\202"}},
    {R"re([[:alpha:]]+)re",
     {"a", "\314\201", "\315\205b", "1", "\342\205\240"}},
    {R"re((\r\n|\n)\Z)re",
     {"a\015\012b", "\015\012"}},
    {R"re(\R)re",
     {"a", "\015\012", "b", "\012", "\342\200\250", "c"}},
    {R"re((?<year>\d{4})-)re",
     {"in ", "2024-", "05"}},
    {R"re(\d+)re",
     {"1\331\241", "\302\262\342\205\247"}},
    {R"re([a-c-e]+)re",
     {"abc", "d", "-e"}},
    {R"re([]x]+)re",
     {"a", "]x", "b"}},
    {R"re((?i:'s|'t)|k)re",
     {"it", "'S", " don\342\200\231", "'\305\277", " ", "k", "\342\204\252K"}},
    {R"re((?i:k))re",
     {"k", "\342\204\252", "K"}},
    {R"re(\p{Lu}\p{Ll}+)re",
     {"Foo",
       "Bar",
       "\320\224\320\260",
       " ",
       "\360\220\265\220\360\220\265\260",
       " ",
       "\352\237\213\352\237\215"}},
    {R"re(\p{M}+)re",
     {"a", "\340\242\227", "b ", "\360\226\204\251\314\201"}},
    {R"re([\p{P}\p{S}]+)re",
     {"a", "\360\237\253\251\342\220\247-", "b", "\360\221\254\200", "c"}},
    {R"re(\p{Cn})re",
     {"a", "\315\270", "b\360\237\253\251\340\242\227"}},
    {"[\344\270\200-\351\276\245]+",
     {"\352\237\213", "\344\270\255", "\352\237\213"}},
    {R"re(x{)re",
     {"a", "x{", "b"}},
    {R"re(\x41|\u0042|\x{43})re",
     {"A", "B", "C", "D"}},
    {R"re([^\S\n]+)re",
     {"a", " \011", "\012", " ", "b"}},
      // clang-format on
  };
  return cases;
}

Pieces split(const std::string& pattern, std::string_view text) {
  Pieces pieces;
  PreTokenizer({pattern}).split(text, [&](std::string_view piece) { pieces.emplace_back(piece); });
  return pieces;
}

TEST(Pattern, SplitsAsHuggingFaceDoes) {
  for (const PatternCase& known : pattern_cases()) {
    std::string text;
    for (const std::string& piece : known.pieces) text += piece;
    EXPECT_EQ(split(known.pattern, text), known.pieces)
        << known.pattern << " became " << translate_pattern(known.pattern).pcre2;
  }
}

TEST(Pattern, RefusesByNameWhatIsNotTheSameInBothEngines) {
  for (const char* pattern : {R"(\X)",          R"(\K)",        R"(a\Gb)",      R"((a)\1)",
                              R"((?~a))",       R"((?x: a))",   R"((?i:ss))",   R"((?i:\u00e9))",
                              R"((?i:\p{Lu}))", R"(\p{Emoji})", R"([[:foo:]])", R"(\xe9)",
                              R"(\y)",          R"(\Q.\E)",     R"((?(1)a))",   R"((a)(?1))",
                              R"([\w-z])",      R"([z-a])",     R"((?:a*)*)",   R"(a{3,1})",
                              R"((*UTF))",      "(a",           "a)",           "[a"}) {
    const std::string message = message_of<DataError>([&] { PreTokenizer({pattern}); });
    EXPECT_NE(message.find("is not supported"), std::string::npos) << pattern << ": " << message;
    EXPECT_NE(message.find("at byte"), std::string::npos) << message;
  }
  EXPECT_NE(message_of<DataError>([] { translate_pattern(R"(a\X)"); }).find("\\X at byte 2"),
            std::string::npos);
}

TEST(Pattern, RefusesDepthAndSizeInsteadOfRecursing) {
  const std::string deep = std::string(100'000, '(');
  message_of<DataError>([&] { translate_pattern(deep.substr(0, 60'000)); });
  message_of<DataError>([&] { translate_pattern(deep); });
  message_of<DataError>([&] { translate_pattern(std::string(60'000, '[')); });
  message_of<DataError>([&] { PreTokenizer({R"((?:(?:a{65535}){65535}){65535})"}); });
}

TEST(Pattern, SaysWhichPatternsMeantSomethingElseBefore) {
  EXPECT_FALSE(translate_pattern(std::string(kGpt2Pattern)).differs);
  EXPECT_FALSE(
      translate_pattern(R"((?i:'s|'t)|\p{N}{1,3}| ?[^\s\p{L}]+[\r\n]*|\s+(?!\S))").differs);
  for (const char* pattern :
       {R"(\p{N}{1,3}+)", "a$", "^a", R"(\w)", R"(\b)", R"(\h)", "[a&&b]", "[[a]b]"}) {
    EXPECT_TRUE(translate_pattern(pattern).differs) << pattern;
  }
}

TEST(Pattern, TakesRunsThatFillTheCompiledPatternsStack) {
  const std::string digits(2'000'000, '1');
  EXPECT_EQ(split(R"(\p{N}{1,3}+)", digits), Pieces{digits});
  EXPECT_EQ(split(R"((?:a|b)+)", std::string(2'000'000, 'a')).size(), 1u);
}

}  // namespace
}  // namespace t2r::data
