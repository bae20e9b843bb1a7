// Texts that arrive in parts: stop strings, and the order of several.
#include "launch/cli/text_stream.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <sstream>

#include "base/error.h"

namespace t2r::launch {
namespace {

using testing::ElementsAre;

/// What add() gives for each part, and finish() at the end.
std::vector<std::string> given(StopStrings stops, const std::vector<std::string>& parts) {
  std::vector<std::string> texts;
  for (const std::string& part : parts) texts.push_back(stops.add(part));
  texts.push_back(stops.finish());
  return texts;
}

TEST(StopStrings, HoldBackWhatMayBeginOne) {
  EXPECT_THAT(given(StopStrings({}), {"a", "", "b"}), ElementsAre("a", "", "b", ""));
  EXPECT_THAT(given(StopStrings({"xyz"}), {"ax", "y", "a", "xy"}),
              ElementsAre("a", "", "xya", "", "xy"));
  EXPECT_THAT(given(StopStrings({"aab"}), {"a", "a", "a", "b", "c"}),
              ElementsAre("", "", "a", "", "", ""));
  EXPECT_THAT(given(StopStrings({"\n\n"}), {"a\n", "b\n", "\nc"}), ElementsAre("a", "\nb", "", ""));
}

TEST(StopStrings, TheFirstOneInTheTextWins) {
  EXPECT_THAT(given(StopStrings({"world", "lo"}), {"hello world", "more"}),
              ElementsAre("hel", "", ""));
  EXPECT_THAT(given(StopStrings({"lo", "hello"}), {"hello world"}), ElementsAre("", ""));
  StopStrings stops({"b"});
  EXPECT_FALSE(stops.has_stopped());
  stops.add("abc");
  EXPECT_TRUE(stops.has_stopped());
}

TEST(StopStrings, EqualACutOfTheWholeTextHoweverItArrives) {
  const std::string text = "abaababaabaababaababa";
  for (const std::vector<std::string>& stops : std::vector<std::vector<std::string>>{
           {"abab"}, {"baaba", "aabab"}, {"aaa", "babaababaa"}, {"bb"}}) {
    size_t end = text.size();
    for (const std::string& stop : stops) end = std::min(end, text.find(stop));
    for (size_t size = 1; size <= text.size(); ++size) {
      StopStrings scanner(stops);
      std::string all;
      for (size_t i = 0; i < text.size(); i += size) all += scanner.add(text.substr(i, size));
      all += scanner.finish();
      EXPECT_EQ(all, text.substr(0, end)) << stops[0] << " in parts of " << size;
    }
  }
}

TEST(StopStrings, ThatCannotBeFoundAreRefused) {
  EXPECT_THROW(StopStrings({"a", ""}), ConfigError);
  EXPECT_THROW(StopStrings({"\xff"}), ConfigError);
}

TEST(OrderedTexts, AreWrittenOneBehindAnother) {
  std::ostringstream out;
  OrderedTexts texts(out, 3, "|");
  texts.add(1, "b");
  texts.add(0, "a");
  EXPECT_EQ(out.str(), "a");
  texts.finish(2);
  texts.add(0, "A");
  texts.finish(0);
  EXPECT_EQ(out.str(), "aA|b");
  texts.add(1, "B");
  EXPECT_EQ(out.str(), "aA|bB");
  texts.finish(1);
  EXPECT_EQ(out.str(), "aA|bB|");
}

}  // namespace
}  // namespace t2r::launch
