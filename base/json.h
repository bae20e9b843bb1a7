#pragma once

#include <cstdint>
#include <filesystem>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <string_view>

#include "base/strict_json.h"

namespace t2r {

/// Enough for configurations and manifests; a vocabulary asks for more keys.
inline constexpr JsonLimits kConfigJsonLimits = {.max_depth = 64, .max_keys = size_t{1} << 16};
inline constexpr JsonLimits kVocabularyJsonLimits = {.max_depth = 64, .max_keys = size_t{1} << 24};

/// Parses untrusted JSON as StrictJsonReader does: without recursion, in linear time, duplicate
/// keys refused; keys stay in the file's order. A key is found in linear time: for an object of
/// many keys iterate instead.
/// @param file  name for messages
/// @throws DataError  names file, byte and rule; or what the file is instead (a Git LFS pointer, a
/// web page)
nlohmann::ordered_json parse_json(std::string_view text,
                                  const std::string& file,
                                  JsonLimits limits = kConfigJsonLimits);

/// The integer that a value is; none for any other value, also for a number that does not fit.
/// (get<int64_t>() of a large float is undefined behaviour.)
std::optional<int64_t> integer_of(const nlohmann::ordered_json& value);

/// parse_json() of a file's content.
/// @throws DataError  also if the file cannot be read
nlohmann::ordered_json read_json_file(const std::filesystem::path& path,
                                      JsonLimits limits = kConfigJsonLimits);

}  // namespace t2r
