#pragma once

#include <cstdint>
#include <filesystem>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <vector>

#include "data/tokenizers/bpe_definition.h"

namespace t2r::data {

/// The steps of a tokenizer.json beside its model: normalizer, pre_tokenizer, decoder,
/// post_processor. What each of them may be is what Hugging Face's tokenizers and Bpe do alike.

/// @throws UnsupportedTokenizer  naming the file, what it asks for and what is allowed
[[noreturn]] void refuse(const std::filesystem::path& path,
                         const std::string& what,
                         const std::string& allowed);

/// A value for a message, at most a line of it.
std::string shown(const nlohmann::ordered_json& json);

/// The value of a key; null where there is none, or `object` is no object.
const nlohmann::ordered_json& find(const nlohmann::ordered_json& object, const char* key);

/// Whether a key is there with something else than null, "", false or 0.
bool is_set(const nlohmann::ordered_json& object, const char* key);

/// @throws UnsupportedTokenizer  on a step that Bpe does not have; so do the others
std::vector<NormalizerStep> read_normalizer(const std::filesystem::path& path,
                                            const nlohmann::ordered_json& json);

/// Sets byte_level, patterns and metaspace.
void read_pre_tokenizer(const std::filesystem::path& path,
                        const nlohmann::ordered_json& json,
                        BpeDefinition* definition);

/// Sets how a tokenizer on characters decodes.
void read_decoder(const std::filesystem::path& path,
                  const nlohmann::ordered_json& json,
                  BpeDefinition* definition);

/// The one token that a post_processor puts in front of a text; several are said and left out.
std::optional<int32_t> find_begin_of_text(const std::filesystem::path& path,
                                          const nlohmann::ordered_json& json,
                                          size_t vocab_size);

}  // namespace t2r::data
