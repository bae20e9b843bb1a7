// The limits that each command's --help says: every number has some, and both sides of each are
// refused in the one wording.

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <map>
#include <regex>
#include <sstream>

#include "base/error.h"
#include "base/text.h"
#include "launch/command.h"

namespace t2r::launch {
namespace {

using Command = int (*)(const Invocation&);

const std::map<std::string, Command>& commands() {
  static const std::map<std::string, Command> all{{"prepare vocab", run_prepare_vocab},
                                                  {"prepare lm", run_prepare_lm},
                                                  {"convert", run_convert},
                                                  {"verify", run_verify},
                                                  {"train", run_train},
                                                  {"evaluate", run_evaluate},
                                                  {"generate", run_generate},
                                                  {"bench generate", run_bench_generate},
                                                  {"bench train", run_bench_train}};
  return all;
}

/// One option as --help describes it.
struct Described {
  std::string key, text, limits;
};

std::vector<Described> described_options(Command command) {
  testing::internal::CaptureStdout();
  command({.arguments = {"--help"}});
  std::istringstream lines(testing::internal::GetCapturedStdout());
  std::vector<Described> found;
  for (std::string line; std::getline(lines, line);) {
    if (line.starts_with("  --")) {
      found.push_back({.key = line.substr(4, line.find(' ', 4) - 4)});
    }
    if (!found.empty()) found.back().text += " " + line.substr(line.find_first_not_of(' '));
  }
  for (Described& option : found) {
    std::smatch match;
    if (std::regex_search(option.text, match, std::regex(R"(\[allowed: ([^\]]*)\])")))
      option.limits = match[1];
  }
  return found;
}

/// A value on each side that the limits leave out.
std::vector<std::string> beyond(const std::string& limits) {
  static const std::regex wording(R"((above )?([^ ,]+)(?: or more|(?: to |, up to )([^ ]+))?)");
  std::smatch match;
  if (!std::regex_match(limits, match, wording)) return {};
  const auto moved = [](const std::string& text, double step) {
    const bool is_whole = text.find_first_not_of("0123456789") == std::string::npos;
    return is_whole ? std::to_string(std::stoll(text) + static_cast<int64_t>(step))
                    : number_text(std::stod(text) + step);
  };
  std::vector<std::string> values{match[1].matched ? match[2].str() : moved(match[2], -1)};
  if (match[3].matched) values.push_back(moved(match[3], 1));
  return values;
}

std::string refusal(Command command, const std::string& key, const std::string& value) {
  try {
    command({.arguments = {"--" + key, value}});
  } catch (const Error& error) {
    return concat(static_cast<int>(error.exit_code()), " ", error.what());
  }
  return "accepted";
}

TEST(OptionLimits, BothSidesOfEachAreRefusedInOneWording) {
  int num_checked = 0;
  for (const auto& [name, command] : commands()) {
    for (const Described& option : described_options(command)) {
      if (option.limits.empty()) continue;
      const std::vector<std::string> values = beyond(option.limits);
      ASSERT_FALSE(values.empty()) << "unknown wording: " << option.limits;
      for (const std::string& value : values) {
        EXPECT_EQ(refusal(command, option.key, value),
                  "78 " + not_allowed(option.key, value, option.limits))
            << name;
        ++num_checked;
      }
    }
  }
  EXPECT_GT(num_checked, 90);
}

TEST(OptionLimits, EveryNumberHasSome) {
  static const std::regex number(R"(\[default: \[?[-0-9])");
  for (const auto& [name, command] : commands()) {
    for (const Described& option : described_options(command)) {
      if (std::regex_search(option.text, number))
        EXPECT_NE(option.limits, "") << name << " --" << option.key;
    }
  }
}

}  // namespace
}  // namespace t2r::launch
