#include "data/normalizer.h"

#include <utf8proc.h>

#include <algorithm>
#include <cstdlib>
#include <memory>

#include "base/error.h"

namespace t2r::data {
namespace {

using Kind = NormalizerStep::Kind;

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

std::string to_normal_form(Kind kind, std::string_view text) {
  utf8proc_uint8_t* bytes = nullptr;
  const utf8proc_ssize_t size =
      utf8proc_map(reinterpret_cast<const utf8proc_uint8_t*>(text.data()),
                   static_cast<utf8proc_ssize_t>(text.size()),
                   &bytes,
                   static_cast<utf8proc_option_t>(utf8proc_options(kind)));
  if (size < 0) throw DataError(concat("cannot normalize a text: ", utf8proc_errmsg(size)));
  const std::unique_ptr<utf8proc_uint8_t, decltype(&std::free)> owner(bytes, &std::free);
  return {reinterpret_cast<const char*>(bytes), static_cast<size_t>(size)};
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
