// What the command line and the --config file may say, and what goes back in.

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <fstream>

#include "base/error.h"
#include "launch/options/option_value.h"
#include "launch/options/options.h"

namespace t2r::launch {
namespace {

using testing::HasSubstr;
using Arguments = std::vector<std::string>;

/// One option of each kind.
struct Everything {
  std::string model, output, choice = "left";
  int64_t count = 7, layers = 0;
  double rate = 3e-4, minutes = 0.0;
  bool flag = false;
  std::vector<std::string> names;
  std::vector<int64_t> numbers;

  void bind(OptionSet& options) {
    options.add("model", model, "folder");
    options.add("output", output, "to write").required();
    options.add_choice("choice", choice, {"left", "right"}, "side");
    options.add("count", count, "how many");
    options.add("rate", rate, "");
    options.add_minutes("every", minutes, "time");
    options.add("flag", flag, "");
    options.add("names", names, "");
    options.add("numbers", numbers, "");
    options.add("model.layers", layers, "blocks");
    options.renamed("number", "count", "--number is another command's");
  }
};

std::string write_file(const std::string& name, const std::string& text) {
  const std::string path = testing::TempDir() + "/" + name;
  std::ofstream(path, std::ios::binary) << text;
  return path;
}

/// Reads `arguments`; the dump, or the exit code and the message.
std::string parsed(Arguments arguments, Everything* values = nullptr) {
  Everything own;
  Everything& bound = values != nullptr ? *values : own;
  OptionSet options("test", "");
  bound.bind(options);
  try {
    options.parse(arguments);
    return options.dump();
  } catch (const Error& error) {
    return concat(static_cast<int>(error.exit_code()), " ", error.what());
  }
}

std::string parsed_file(const std::string& text) {
  return parsed({"--output", "x", "--config", write_file("options.toml", text)});
}

std::string count_of(const std::string& text) {
  Everything values;
  const std::string result = parsed({"--output", "x", "--count", text}, &values);
  return result.starts_with("64") ? result : std::to_string(values.count);
}

TEST(OptionValue, WholeNumbersAreDecimalAndMayHaveSuffixes) {
  EXPECT_EQ(count_of("010"), "10") << "not octal";
  EXPECT_EQ(count_of("100M"), "100000000");
  EXPECT_EQ(count_of("1e8"), "100000000");
  EXPECT_EQ(count_of("1.5K"), "1500");
  EXPECT_EQ(count_of("2B"), "2000000000");
  EXPECT_EQ(count_of("1_000"), "1000");
  EXPECT_EQ(count_of("-5"), "-5");
  EXPECT_EQ(count_of("9223372036854775807"), "9223372036854775807");
  for (const char* bad :
       {"32.9", "0x10", "", " 5", "1e", "1e-3", "100m", "1Mi", "nan", "_1", "1__0"})
    EXPECT_THAT(count_of(bad), HasSubstr(concat("count = ", bad, ", allowed: a whole number")));
  for (const char* large : {"1e400", "9223372036854775808", "10000000000000000000T"})
    EXPECT_THAT(count_of(large), HasSubstr("of at most 9223372036854775807"));
}

TEST(OptionValue, RealNumbersAreFinite) {
  for (const char* bad : {"nan", "inf", "-inf", "1e400", "1,5", "0x1p3", ""})
    EXPECT_THAT(parsed({"--rate", bad}), HasSubstr(concat("rate = ", bad, ", allowed: a finite")));
}

/// What is said of `text` as the value of an option that `bind` binds.
template <class T, class Bind>
std::string refusal(T value, const std::string& text, const Bind& bind) {
  OptionSet options("test", "");
  bind(options.add("beta1", value, ""));
  try {
    options.parse({"--beta1", text});
  } catch (const Error& error) {
    return concat(static_cast<int>(error.exit_code()), " ", error.what());
  }
  return "accepted";
}

TEST(OptionValue, LimitsAndValuesAreShownAsTheyAre) {
  const auto within = [](const std::string& text, double low, double high) {
    return refusal(0.5, text, [&](auto option) { option.range(low, high); });
  };
  EXPECT_EQ(within("1", 0.0, 0.9999999), "78 beta1 = 1, allowed: 0 to 0.9999999");
  EXPECT_EQ(within("1.0000001", 1e-30, 1.0), "78 beta1 = 1.0000001, allowed: 1e-30 to 1");
  EXPECT_EQ(within("1000001", 0.0, 1e6), "78 beta1 = 1000001, allowed: 0 to 1e+06");
  EXPECT_EQ(within("-90", 0.0, 1.0), "78 beta1 = -90, allowed: 0 to 1");
  EXPECT_EQ(within("0", 0.0, 1.0), "accepted");
  EXPECT_EQ(within("1", 0.0, 1.0), "accepted");
}

TEST(OptionValue, EveryKindOfLimitIsWrittenOnce) {
  const auto at_least = [](auto option) { option.at_least(1); };
  EXPECT_EQ(refusal(int64_t{5}, "0", at_least), "78 beta1 = 0, allowed: 1 or more");
  EXPECT_EQ(refusal(int64_t{5}, "1", at_least), "accepted");
  const auto above = [](auto option) { option.above(0.0); };
  EXPECT_EQ(refusal(0.5, "0", above), "78 beta1 = 0, allowed: above 0");
  EXPECT_EQ(refusal(0.5, "1e-300", above), "accepted");
  const auto share = [](auto option) { option.above(0.0, 1.0); };
  EXPECT_EQ(refusal(0.5, "0", share), "78 beta1 = 0, allowed: above 0, up to 1");
  EXPECT_EQ(refusal(0.5, "1.5", share), "78 beta1 = 1.5, allowed: above 0, up to 1");
  EXPECT_EQ(refusal(0.5, "1", share), "accepted");
  const auto layers = [](auto option) { option.range(0, 7); };
  EXPECT_EQ(refusal(std::vector<int64_t>{}, "3,8,9", layers), "78 beta1 = 8, allowed: 0 to 7");
  EXPECT_EQ(refusal(std::vector<int64_t>{}, "", layers), "accepted");
}

TEST(OptionValue, TimesHaveUnits) {
  const auto minutes = [](const std::string& text) {
    double value = -1.0;
    return read_minutes(text, value).empty() ? value : -1.0;
  };
  EXPECT_EQ(minutes("45"), 45.0);
  EXPECT_EQ(minutes("30m"), 30.0);
  EXPECT_EQ(minutes("2h"), 120.0);
  EXPECT_EQ(minutes("1h30m"), 90.0);
  EXPECT_EQ(minutes("90s"), 1.5);
  EXPECT_EQ(minutes("1d"), 1440.0);
  for (const char* bad : {"", "h", "5x", "1h30", "nan"}) EXPECT_EQ(minutes(bad), -1.0) << bad;
}

TEST(OptionValue, ProductsThatOverflowAreRefused) {
  EXPECT_EQ(checked_product("p", {3, 4, 5}), 60);
  EXPECT_THROW(checked_product("p", {int64_t{1} << 32, int64_t{1} << 32}), ConfigError);
}

TEST(CommandLine, SaysWhatIsWrong) {
  EXPECT_THAT(parsed({"--cuont", "1"}), HasSubstr("\"--cuont\"; did you mean --count?"));
  EXPECT_THAT(parsed({"stray"}), HasSubstr("64 command line: unknown argument \"stray\""));
  EXPECT_THAT(parsed({"--flag", "false"}), HasSubstr("is written --flag=false"));
  EXPECT_THAT(parsed({"--flag=maybe"}), HasSubstr("flag = maybe, allowed: true, false"));
  EXPECT_THAT(parsed({"--output"}), HasSubstr("--output has no value"));
  EXPECT_THAT(parsed({"--output", "--count", "1"}), HasSubstr("the next argument is --count"));
  EXPECT_THAT(parsed({}), HasSubstr("64 --output is required"));
  EXPECT_THAT(parsed({"--output="}), HasSubstr("--output is required"));
  for (const char* odd : {"-", "--", "-x", "---"})
    EXPECT_THAT(parsed({odd}), HasSubstr("64 command line: unknown argument")) << odd;
}

TEST(CommandLine, ARenamedOptionIsRefusedWithTheNameToUse) {
  const char* const why = "number is count here: --number is another command's";
  EXPECT_THAT(
      parsed({"--number", "1"}),
      HasSubstr("64 command line: --number is --count here: --number is another command's"));
  EXPECT_THAT(parsed({"--number=1"}), HasSubstr("--number is --count here"));
  EXPECT_THAT(parsed_file("\nnumber = 1\n"), HasSubstr("78 " + testing::TempDir()));
  EXPECT_THAT(parsed_file("\nnumber = 1\n"), HasSubstr(concat("options.toml:2: ", why)));
}

TEST(CommandLine, TheLastOfTwoWinsAndListsAddUp) {
  Everything values;
  parsed({"--output",
          "x",
          "--output",
          "y",
          "--names",
          "a",
          "b",
          "--numbers",
          "1,2",
          "3",
          "--names",
          "c",
          "--flag",
          "--flag=false"},
         &values);
  EXPECT_EQ(values.output, "y");
  EXPECT_EQ(values.names, (std::vector<std::string>{"a", "b", "c"}));
  EXPECT_EQ(values.numbers, (std::vector<int64_t>{1, 2, 3}));
  EXPECT_FALSE(values.flag);
}

TEST(ConfigFile, TakesTypesThatFitAndRefusesOthers) {
  EXPECT_THAT(parsed_file("count = \"100M\"\n"), HasSubstr("\ncount = 100000000\n"));
  EXPECT_THAT(parsed_file("count = 1e3\n"), HasSubstr("\ncount = 1000\n"));
  EXPECT_THAT(parsed_file("every = \"2h\"\n"), HasSubstr("\nevery = 120.0\n"));
  EXPECT_THAT(parsed_file("\xEF\xBB\xBF"
                          "count = 3\n"),
              HasSubstr("\ncount = 3\n"));
  EXPECT_THAT(parsed_file("count = 32.9\n"),
              HasSubstr("options.toml:1: count = 32.9, allowed: a whole"));
  for (const char* number : {"0x10", "0o10", "0b1"})  // as on the command line
    EXPECT_THAT(parsed_file(concat("count = ", number, "\n")),
                HasSubstr("78 " + testing::TempDir() + "/options.toml:1: count is not decimal"));
  EXPECT_THAT(parsed_file("numbers = [1, 0x10]\n"), HasSubstr("numbers is not decimal"));
  EXPECT_THAT(parsed_file("rate = 0x10\n"), HasSubstr("rate is not decimal"));
  EXPECT_THAT(parsed_file("count = true\n"), HasSubstr("count = true, allowed: a number"));
  EXPECT_THAT(parsed_file("count = 2026-01-01\n"), HasSubstr("allowed: a number"));
  EXPECT_THAT(parsed_file("flag = 1\n"), HasSubstr("flag = 1, allowed: true, false"));
  EXPECT_THAT(parsed_file("flag = \"maybe\"\n"), HasSubstr("allowed: true, false"));
  EXPECT_THAT(parsed_file("model = 5\n"), HasSubstr("allowed: a text, in quotes"));
  EXPECT_THAT(parsed_file("rate = nan\n"), HasSubstr("rate = nan, allowed: a finite"));
  EXPECT_THAT(parsed_file("count = 1\ncount = 2\n"), HasSubstr("78 "));
  EXPECT_THAT(parsed_file("count = [1]\n"), HasSubstr("takes one value, not a list of 1"));
  EXPECT_THAT(parsed_file("names = [[\"a\"]]\n"), HasSubstr("a list or a table in a list"));
  EXPECT_THAT(parsed_file("names = [\"a\", 1]\n"), HasSubstr("different types"));
  EXPECT_THAT(parsed_file("names = [\"a\", \"\"]\n"), HasSubstr("names that are not empty"));
  EXPECT_THAT(parsed_file("\n[modle]\n"), HasSubstr("options.toml:2: unknown table \"modle\""));
  EXPECT_THAT(parsed_file("[modle]\nlayers = 1\n"), HasSubstr("did you mean model.layers?"));
  EXPECT_THAT(parsed_file("choice = \"up\"\n"), HasSubstr("choice = \"up\", allowed: left, right"));
  EXPECT_THAT(parsed({"--config", "/nowhere.toml"}), HasSubstr("78 /nowhere.toml: cannot be read"));
}

TEST(ConfigFile, ADumpGoesBackIn) {
  const std::vector<Arguments> all{{},
                                   {"--model.layers", "3"},
                                   {"--output", "a\"b\\c\nd", "--model", "m", "--rate", "0.1"},
                                   {"--names", "a", "b", "--numbers", "1", "--every", "1h"}};
  for (Arguments arguments : all) {
    arguments.push_back("--dump-config");
    const std::string dump = parsed(arguments);
    EXPECT_EQ(parsed({"--config", write_file("dump.toml", dump), "--dump-config"}), dump);
  }
}

TEST(ConfigFile, ADumpOfWhatIsNotUtf8IsRefused) {
  EXPECT_THAT(parsed({"--output", "caf\xE9", "--dump-config"}),
              HasSubstr("78 --dump-config: output = \"caf\xE9\" is not UTF-8"));
  EXPECT_THAT(parsed({"--output", "x", "--names", "a", "\xFF", "--dump-config"}), HasSubstr("78 "));
  // What a run keeps of its options can be read, without them.
  const std::string kept = parsed({"--output", "caf\xE9", "--count", "3"});
  EXPECT_THAT(kept, HasSubstr("\n# output is not UTF-8: \"caf\\xe9\"\n"));
  EXPECT_THAT(parsed({"--config", write_file("kept.toml", kept), "--output", "x"}),
              HasSubstr("\ncount = 3\n"));
  EXPECT_THAT(parsed({"--output", "caf\xC3\xA9"}), HasSubstr("output = \"caf\xC3\xA9\"\n"));
}

TEST(ConfigFile, ADumpHasCommentsAndLeavesOutWhatExcludesEachOther) {
  const std::string finetuning = parsed({"--output", "x", "--model", "m"});
  EXPECT_THAT(finetuning, HasSubstr("# folder\nmodel = \"m\"\n"));
  EXPECT_THAT(finetuning, HasSubstr("# [model]\n# blocks\n# layers = 0\n"));
  EXPECT_THAT(finetuning, HasSubstr("# side: left, right\nchoice = \"left\"\n"));
  const std::string fresh = parsed({"--output", "x", "--model.layers", "2"});
  EXPECT_THAT(fresh, HasSubstr("# model = \"\"\n"));
  EXPECT_THAT(fresh, HasSubstr("\n[model]\n# blocks\nlayers = 2\n"));
}

TEST(OptionSet, AKeyAndItsTableExcludeEachOther) {
  EXPECT_THAT(parsed({"--output", "x", "--model", "m", "--model.layers", "0"}),
              HasSubstr("78 --model and [model] exclude each other"));
  EXPECT_THAT(parsed({"--output",
                      "x",
                      "--model",
                      "m",
                      "--config",
                      write_file("table.toml", "[model]\nlayers = 2\n")}),
              HasSubstr("exclude each other"));
}

}  // namespace
}  // namespace t2r::launch
