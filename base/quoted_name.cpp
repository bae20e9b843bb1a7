#include "base/quoted_name.h"

#include <nlohmann/json.hpp>

namespace t2r {

std::string quoted_name(std::string_view text) {
  constexpr size_t kMaxQuotedBytes = 80;
  const bool cut = text.size() > kMaxQuotedBytes;
  std::string shown = nlohmann::json(text.substr(0, kMaxQuotedBytes))
                          .dump(-1, ' ', true, nlohmann::json::error_handler_t::replace);
  if (cut) shown.insert(shown.size() - 1, "...");
  return shown;
}

std::string one_line(std::string_view text) {
  std::string line;
  for (size_t i = 0; i < text.size(); ++i) {
    const auto byte = static_cast<unsigned char>(text[i]);
    const auto next = static_cast<unsigned char>(i + 1 < text.size() ? text[i + 1] : 0);
    const bool is_wide_control = byte == 0xC2 && next >= 0x80 && next < 0xA0;
    if (byte >= 0x20 && byte != 0x7F && !is_wide_control) {
      line += text[i];
    } else if (byte == '\n') {
      line += "\\n";
    } else if (byte == '\t') {
      line += "\\t";
    } else {
      constexpr char kDigits[] = "0123456789abcdef";
      const unsigned char shown = is_wide_control ? next : byte;
      line += {'\\', 'x', kDigits[shown >> 4], kDigits[shown & 15]};
      if (is_wide_control) ++i;
    }
  }
  return line;
}

}  // namespace t2r
