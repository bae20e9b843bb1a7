#include "base/text.h"

#include <array>
#include <cmath>
#include <cstdio>
#include <cstdlib>

namespace t2r {

std::string joined(const std::vector<std::string>& texts, const char* separator) {
  std::string all;
  for (size_t i = 0; i < texts.size(); ++i) all += (i == 0 ? "" : separator) + texts[i];
  return all;
}

std::string number_text(double value) {
  std::array<char, 40> text{};
  if (value == std::floor(value) && std::abs(value) < 1e6) {  // not 9e+01
    std::snprintf(text.data(), text.size(), "%.0f", value);
    return text.data();
  }
  for (int digits = 1; digits <= 17; ++digits) {
    std::snprintf(text.data(), text.size(), "%.*g", digits, value);
    if (std::strtod(text.data(), nullptr) == value) break;
  }
  return text.data();
}

std::string not_allowed(const std::string& key,
                        const std::string& value,
                        const std::string& allowed,
                        const std::string& where) {
  return key + " = " + value + ", allowed" + (where.empty() ? "" : " " + where) + ": " + allowed;
}

}  // namespace t2r
