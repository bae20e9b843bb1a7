#include "data/unicode/utf8.h"

#include <cstdint>
#include <cstring>

namespace t2r::data {
namespace {

constexpr char32_t kReplacement = 0xFFFD;
constexpr Utf8Step kInvalidByte = {kReplacement, 1, false};

/// What may follow a lead byte: how many bytes, and the range of the first of them (table 3-7).
struct Lead {
  size_t num_following;
  uint8_t low;
  uint8_t high;
};

Lead classify_lead(uint8_t lead) {
  if (lead >= 0xC2 && lead <= 0xDF) return {1, 0x80, 0xBF};
  if (lead == 0xE0) return {2, 0xA0, 0xBF};
  if (lead == 0xED) return {2, 0x80, 0x9F};
  if (lead >= 0xE1 && lead <= 0xEF) return {2, 0x80, 0xBF};
  if (lead == 0xF0) return {3, 0x90, 0xBF};
  if (lead >= 0xF1 && lead <= 0xF3) return {3, 0x80, 0xBF};
  if (lead == 0xF4) return {3, 0x80, 0x8F};
  return {0, 0, 0};
}

}  // namespace

Utf8Step read_utf8(std::string_view text, size_t offset) {
  const auto byte = [&](size_t i) { return static_cast<uint8_t>(text[offset + i]); };
  const uint8_t first = byte(0);
  if (first < 0x80) return {first, 1, true};
  const Lead lead = classify_lead(first);
  if (lead.num_following == 0) return kInvalidByte;
  char32_t code_point = first & (0x3Fu >> lead.num_following);
  for (size_t i = 1; i <= lead.num_following; ++i) {
    const uint8_t low = i == 1 ? lead.low : 0x80;
    const uint8_t high = i == 1 ? lead.high : 0xBF;
    if (offset + i >= text.size() || byte(i) < low || byte(i) > high) {
      return {kReplacement, i, false};
    }
    code_point = (code_point << 6) | (byte(i) & 0x3Fu);
  }
  return {code_point, lead.num_following + 1, true};
}

size_t find_invalid_utf8(std::string_view text) {
  constexpr uint64_t kHighBits = 0x8080808080808080ull;
  size_t offset = 0;
  while (offset < text.size()) {
    uint64_t word = 0;
    if (offset + sizeof word <= text.size()) {
      std::memcpy(&word, text.data() + offset, sizeof word);
      if ((word & kHighBits) == 0) {
        offset += sizeof word;
        continue;
      }
    }
    const Utf8Step step = read_utf8(text, offset);
    if (!step.valid) return offset;
    offset += step.num_bytes;
  }
  return text.size();
}

std::string replace_invalid_utf8(std::string_view text) {
  std::string valid;
  valid.reserve(text.size());
  size_t offset = 0;
  while (offset < text.size()) {
    const size_t invalid = offset + find_invalid_utf8(text.substr(offset));
    valid.append(text, offset, invalid - offset);
    offset = invalid;
    if (offset == text.size()) break;
    append_utf8(kReplacement, &valid);
    offset += read_utf8(text, offset).num_bytes;
  }
  return valid;
}

void append_utf8(char32_t code_point, std::string* text) {
  const auto push = [&](char32_t byte) { text->push_back(static_cast<char>(byte)); };
  if (code_point < 0x80) {
    push(code_point);
    return;
  }
  if (code_point < 0x800) {
    push(0xC0 | (code_point >> 6));
  } else {
    if (code_point < 0x10000) {
      push(0xE0 | (code_point >> 12));
    } else {
      push(0xF0 | (code_point >> 18));
      push(0x80 | ((code_point >> 12) & 0x3F));
    }
    push(0x80 | ((code_point >> 6) & 0x3F));
  }
  push(0x80 | (code_point & 0x3F));
}

bool is_white_space(char32_t c) {
  return (c >= 0x09 && c <= 0x0D) || c == 0x20 || c == 0x85 || c == 0xA0 || c == 0x1680 ||
         (c >= 0x2000 && c <= 0x200A) || c == 0x2028 || c == 0x2029 || c == 0x202F || c == 0x205F ||
         c == 0x3000;
}

}  // namespace t2r::data
