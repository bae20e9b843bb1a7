#include "data/unicode/normalizer.h"

#include <utf8proc.h>

#include <algorithm>
#include <cstdlib>
#include <iterator>
#include <memory>

#include "base/error.h"
#include "data/unicode/utf8.h"

namespace t2r::data {
namespace {

using Kind = NormalizerStep::Kind;

struct CodePointRange {
  char32_t first;
  char32_t last;
};

/// Marks and composites that are younger than the Unicode version of tokenizers 0.23.3's
/// normalizers: they stay as they are, and nothing moves or composes across them. In ascending
/// order. Source: every code point asked of tokenizers 0.23.3 and of Unicode 14, whose forms are
/// those of later versions for all others
constexpr CodePointRange kUntouched[] = {
    // clang-format off
    {0x7FD, 0x7FD}, {0x897, 0x89F}, {0x8CA, 0x8D3}, {0x9FE, 0x9FE}, {0xC3C, 0xC3C}, {0xCF3, 0xCF3},
    {0xD3B, 0xD3C}, {0xEBA, 0xEBA}, {0xECE, 0xECE}, {0x1715, 0x1715}, {0x1ABF, 0x1ACE},
    {0x1DF6, 0x1DFA}, {0x32FF, 0x32FF}, {0xA7F2, 0xA7F4}, {0xA82C, 0xA82C}, {0xAB69, 0xAB69},
    {0x105C0, 0x105F3}, {0x10781, 0x10785}, {0x10787, 0x107B0}, {0x107B2, 0x107BA},
    {0x10D24, 0x10D27}, {0x10D4A, 0x10D4F}, {0x10D69, 0x10D6D}, {0x10D6F, 0x10D6F},
    {0x10EAB, 0x10EAC}, {0x10EC2, 0x10EC4}, {0x10EFC, 0x10EFF}, {0x10F46, 0x10F50},
    {0x10F82, 0x10F85}, {0x11070, 0x11070}, {0x1123F, 0x11241}, {0x1133B, 0x1133B},
    {0x11380, 0x11389}, {0x1138B, 0x1138B}, {0x1138E, 0x1138E}, {0x11390, 0x113B5},
    {0x113B7, 0x113C0}, {0x113C2, 0x113C2}, {0x113C5, 0x113C5}, {0x113C7, 0x113CA},
    {0x113CC, 0x113D3}, {0x113E1, 0x113E2}, {0x1145E, 0x1145E}, {0x11839, 0x1183A},
    {0x11930, 0x11930}, {0x11935, 0x11935}, {0x11938, 0x11938}, {0x1193D, 0x1193E},
    {0x11943, 0x11943}, {0x119E0, 0x119E0}, {0x11A34, 0x11A34}, {0x11A47, 0x11A47},
    {0x11A99, 0x11A99}, {0x11BC0, 0x11BE0}, {0x11D42, 0x11D42}, {0x11D44, 0x11D45},
    {0x11D97, 0x11D97}, {0x11F00, 0x11F10}, {0x11F12, 0x11F3A}, {0x11F3E, 0x11F42},
    {0x11F5A, 0x11F5A}, {0x1342F, 0x1342F}, {0x13440, 0x13455}, {0x13460, 0x143FA},
    {0x16100, 0x1612F}, {0x16D40, 0x16D6C}, {0x16FF0, 0x16FF1}, {0x18CFF, 0x18CFF},
    {0x1B132, 0x1B132}, {0x1B155, 0x1B155}, {0x1E030, 0x1E06D}, {0x1E08F, 0x1E08F},
    {0x1E130, 0x1E136}, {0x1E2AE, 0x1E2AE}, {0x1E2EC, 0x1E2EF}, {0x1E4D0, 0x1E4EF},
    {0x1E5D0, 0x1E5F0}, {0x1F16C, 0x1F16C}, {0x1FBF0, 0x1FBF9}, {0x2B739, 0x2B739},
    {0x2EBF0, 0x2EE5D}, {0x31350, 0x323AF},
    // clang-format on
};

bool is_untouched(char32_t code_point) {
  const auto* range = std::lower_bound(
      std::begin(kUntouched),
      std::end(kUntouched),
      code_point,
      [](const CodePointRange& candidate, char32_t value) { return candidate.last < value; });
  return range != std::end(kUntouched) && range->first <= code_point;
}

int utf8proc_options(Kind kind) {
  constexpr int kStable = UTF8PROC_STABLE;
  switch (kind) {
    case Kind::kNfc:
      return kStable | UTF8PROC_COMPOSE;
    case Kind::kNfd:
      return kStable | UTF8PROC_DECOMPOSE;
    case Kind::kNfkc:
      return kStable | UTF8PROC_COMPOSE | UTF8PROC_COMPAT;
    default:
      return kStable | UTF8PROC_DECOMPOSE | UTF8PROC_COMPAT;
  }
}

/// Below the first code point that the form may change: U+0300 for NFC, U+00A0 for the others.
bool is_unchanged(Kind kind, std::string_view text) {
  const unsigned char first_lead = kind == Kind::kNfc ? 0xCC : 0xC2;
  return std::ranges::all_of(text,
                             [&](char c) { return static_cast<unsigned char>(c) < first_lead; });
}

/// Appends the normal form of a text without untouched code points.
void append_normal_form(Kind kind, std::string_view text, std::string* normalized) {
  if (text.empty()) return;
  utf8proc_uint8_t* bytes = nullptr;
  const utf8proc_ssize_t size =
      utf8proc_map(reinterpret_cast<const utf8proc_uint8_t*>(text.data()),
                   static_cast<utf8proc_ssize_t>(text.size()),
                   &bytes,
                   static_cast<utf8proc_option_t>(utf8proc_options(kind)));
  if (size < 0) throw DataError(concat("cannot normalize a text: ", utf8proc_errmsg(size)));
  const std::unique_ptr<utf8proc_uint8_t, decltype(&std::free)> owner(bytes, &std::free);
  normalized->append(reinterpret_cast<const char*>(bytes), static_cast<size_t>(size));
}

std::string to_normal_form(Kind kind, std::string_view text) {
  std::string normalized;
  size_t begin = 0;
  for (size_t offset = 0; offset < text.size();) {
    const Utf8Step step = read_utf8(text, offset);
    if (is_untouched(step.code_point)) {
      append_normal_form(kind, text.substr(begin, offset - begin), &normalized);
      normalized.append(text, offset, step.num_bytes);
      begin = offset + step.num_bytes;
    }
    offset += step.num_bytes;
  }
  append_normal_form(kind, text.substr(begin), &normalized);
  return normalized;
}

std::string replace_all(std::string_view text, std::string_view from, std::string_view to) {
  std::string replaced;
  size_t offset = 0;
  for (size_t found; (found = text.find(from, offset)) != std::string_view::npos;) {
    replaced.append(text, offset, found - offset).append(to);
    offset = found + from.size();
  }
  return replaced.append(text, offset);
}

}  // namespace

std::string normalize(const std::vector<NormalizerStep>& steps, std::string_view text) {
  std::string normalized(text);
  for (const NormalizerStep& step : steps) {
    if (step.kind == Kind::kPrepend) {
      if (!normalized.empty()) normalized.insert(0, step.to);
    } else if (step.kind == Kind::kReplace) {
      normalized = replace_all(normalized, step.from, step.to);
    } else if (!is_unchanged(step.kind, normalized)) {
      normalized = to_normal_form(step.kind, normalized);
    }
  }
  return normalized;
}

std::string describe(const NormalizerStep& step) {
  constexpr const char* kNames[] = {"NFC", "NFD", "NFKC", "NFKD", "Prepend", "Replace"};
  return concat(
      kNames[static_cast<int>(step.kind)], " ", step.from.size(), ":", step.from, step.to);
}

}  // namespace t2r::data
