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

}  // namespace t2r
