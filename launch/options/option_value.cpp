#include "launch/options/option_value.h"

#include <algorithm>
#include <charconv>
#include <cmath>
#include <cstdio>
#include <limits>
#include <map>
#include <nlohmann/json.hpp>
#include <sstream>

#include "base/error.h"
#include "base/text.h"

namespace t2r::launch {
namespace {

constexpr const char* kWholeNumber = "a whole number, such as 500, 100M or 1e8";
constexpr const char* kTooLarge = "a whole number of at most 9223372036854775807";

bool is_digit(char c) {
  return c >= '0' && c <= '9';
}

/// A decimal number in pieces: digits x 10^exponent.
struct Decimal {
  bool is_negative = false;
  std::string digits;
  int64_t exponent = 0;
};

// Takes digits from text[at] on; an underscore may stand between two of them.
void take_digits(const std::string& text, size_t& at, std::string& digits) {
  while (at < text.size()) {
    const bool is_separator = text[at] == '_' && at > 0 && is_digit(text[at - 1]) &&
                              at + 1 < text.size() && is_digit(text[at + 1]);
    if (!is_separator && !is_digit(text[at])) return;
    if (!is_separator) digits += text[at];
    ++at;
  }
}

int64_t power_of_suffix(char suffix) {
  switch (suffix) {
    case 'k':
    case 'K':
      return 3;
    case 'M':
      return 6;
    case 'G':
    case 'B':
      return 9;
    case 'T':
      return 12;
    default:
      return -1;
  }
}

bool parse_decimal(const std::string& text, Decimal& number) {
  size_t at = 0;
  if (at < text.size() && (text[at] == '-' || text[at] == '+'))
    number.is_negative = text[at++] == '-';
  take_digits(text, at, number.digits);
  if (at < text.size() && text[at] == '.') {
    const size_t whole = number.digits.size();
    take_digits(text, ++at, number.digits);
    number.exponent = -static_cast<int64_t>(number.digits.size() - whole);
  }
  if (number.digits.empty()) return false;
  if (at < text.size() && (text[at] == 'e' || text[at] == 'E')) {
    at += at + 1 < text.size() && text[at + 1] == '+' ? 2 : 1;
    int exponent = 0;
    const char* const begin = text.data() + at;
    const auto [end, error] = std::from_chars(begin, text.data() + text.size(), exponent);
    if (error != std::errc() || end == begin) return false;
    at = static_cast<size_t>(end - text.data());
    number.exponent += exponent;
  }
  if (at < text.size()) {
    const int64_t power = power_of_suffix(text[at++]);
    if (power < 0) return false;
    number.exponent += power;
  }
  return at == text.size();
}

template <class T>
std::string list_to_toml(const std::vector<T>& values) {
  std::string text = "[";
  for (size_t i = 0; i < values.size(); ++i) text += (i == 0 ? "" : ", ") + to_toml(values[i]);
  return text + "]";
}

}  // namespace

std::string read_value(const std::string& text, std::string& value) {
  value = text;
  return "";
}

std::string read_value(const std::string& text, int64_t& value) {
  Decimal number;
  if (!parse_decimal(text, number)) return kWholeNumber;
  number.digits.erase(0, std::min(number.digits.find_first_not_of('0'), number.digits.size()));
  while (number.exponent < 0 && !number.digits.empty() && number.digits.back() == '0') {
    number.digits.pop_back();
    ++number.exponent;
  }
  if (number.digits.empty()) {
    value = 0;
    return "";
  }
  if (number.exponent < 0) return kWholeNumber;
  constexpr size_t kMostDigits = std::numeric_limits<int64_t>::digits10 + 1;
  if (number.exponent > static_cast<int64_t>(kMostDigits)) return kTooLarge;
  number.digits.append(static_cast<size_t>(number.exponent), '0');
  int64_t magnitude = 0;
  const char* const end = number.digits.data() + number.digits.size();
  const auto parsed = std::from_chars(number.digits.data(), end, magnitude);
  if (parsed.ec != std::errc() || parsed.ptr != end) return kTooLarge;
  value = number.is_negative ? -magnitude : magnitude;
  return "";
}

std::string read_value(const std::string& text, double& value) {
  const size_t begin = text.starts_with('+') ? 1 : 0;
  const char* const end = text.data() + text.size();
  double number = 0.0;
  const auto parsed = std::from_chars(text.data() + begin, end, number);
  if (parsed.ec != std::errc() || parsed.ptr != end || !std::isfinite(number))
    return "a finite number, such as 0.1 or 3e-4";
  value = number;
  return "";
}

std::string read_value(const std::string& text, bool& value) {
  static const std::map<std::string, bool> kNames{{"true", true},
                                                  {"yes", true},
                                                  {"on", true},
                                                  {"1", true},
                                                  {"false", false},
                                                  {"no", false},
                                                  {"off", false},
                                                  {"0", false}};
  const auto found = kNames.find(text);
  if (found == kNames.end()) return "true, false";
  value = found->second;
  return "";
}

std::string read_minutes(const std::string& text, double& value) {
  constexpr const char* kAllowed = "minutes, or a time such as 90s, 30m, 2h, 1h30m, 1d";
  static const std::map<char, double> kMinutes{
      {'s', 1.0 / 60.0}, {'m', 1.0}, {'h', 60.0}, {'d', 1440.0}};
  if (read_value(text, value).empty()) return "";
  double minutes = 0.0;
  for (size_t at = 0; at < text.size() || at == 0;) {
    const size_t unit = text.find_first_not_of("0123456789.", at);
    double number = 0.0;
    if (unit == std::string::npos || !kMinutes.contains(text[unit]) ||
        !read_value(text.substr(at, unit - at), number).empty())
      return kAllowed;
    minutes += number * kMinutes.at(text[unit]);
    at = unit + 1;
  }
  value = minutes;
  return "";
}

std::string read_value(const std::vector<std::string>& texts, std::vector<std::string>& value) {
  const bool is_empty = texts.size() == 1 && texts[0].empty();
  if (!is_empty && std::find(texts.begin(), texts.end(), "") != texts.end())
    return "names that are not empty";
  value = is_empty ? std::vector<std::string>{} : texts;
  return "";
}

std::string read_value(const std::vector<std::string>& texts, std::vector<int64_t>& value) {
  std::vector<int64_t> numbers;
  for (const std::string& text : texts) {
    if (text.empty() && texts.size() == 1) break;
    std::istringstream parts(text + ",");
    for (std::string part; std::getline(parts, part, ',');) {
      const std::string allowed = read_value(part, numbers.emplace_back());
      if (!allowed.empty()) return concat(allowed, ", each");
    }
  }
  value = numbers;
  return "";
}

std::string to_toml(const std::string& value) {
  std::string text = "\"";
  for (const char c : value) {
    if (c == '"' || c == '\\') {
      text += {'\\', c};
    } else if (static_cast<unsigned char>(c) < 0x20 || c == 0x7F) {
      char escape[8];
      std::snprintf(escape, sizeof(escape), "\\u%04X", static_cast<unsigned char>(c));
      text += escape;
    } else {
      text += c;
    }
  }
  return text + "\"";
}

std::string to_toml(int64_t value) {
  return std::to_string(value);
}

std::string to_toml(bool value) {
  return value ? "true" : "false";
}

std::string to_toml(double value) {
  const std::string text = number_text(value);
  return text.find_first_of(".en") == std::string::npos ? text + ".0" : text;
}

std::string to_toml(const std::vector<std::string>& values) {
  return list_to_toml(values);
}

std::string to_toml(const std::vector<int64_t>& values) {
  return list_to_toml(values);
}

std::string fact_text(double value) {
  return nlohmann::json(value).dump();
}

int64_t checked_product(const std::string& what, const std::vector<int64_t>& factors) {
  int64_t product = 1;
  for (const int64_t factor : factors) {
    if (__builtin_mul_overflow(product, factor, &product)) {
      throw ConfigError(
          concat(what, " is more than ", std::numeric_limits<int64_t>::max(), ", the largest"));
    }
  }
  return product;
}

}  // namespace t2r::launch
