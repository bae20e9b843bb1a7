#pragma once

#include <cstdint>
#include <filesystem>
#include <string>
#include <string_view>
#include <vector>

namespace t2r::data {

struct PrepareLmOptions;

/// A text file that is to become tokens.
struct PrepareInput {
  std::filesystem::path path;
  int64_t num_bytes = 0;

  std::string name() const { return path.filename().string(); }
};

/// Inputs that go, in this order, into the shards `<stem>-00000.h5`, -00001, ...
struct InputGroup {
  std::string stem;
  std::vector<PrepareInput> inputs;
  int64_t num_bytes = 0;
};

/// @param allow_invalid_utf8  take what seems to be binary, too
/// @throws ConfigError  if it is no file
/// @throws DataError    if it can be seen to be no text (a shard, an archive, ...)
PrepareInput look_at_input(const std::filesystem::path& path, bool allow_invalid_utf8);

/// Groups of the inputs, in the order in which a corpus reads their shards: one group each, named
/// after the input, or, with options.fill_shards, some hundreds of groups at most, `filled-00000`
/// and so on, cut from the same order. They depend on the inputs alone, not on the number of ranks.
///
/// @throws ConfigError  if an input is given twice or would write another's shards
/// @throws ConfigError, DataError  as look_at_input() does
std::vector<InputGroup> group_inputs(const PrepareLmOptions& options);

/// Whether a stem is that of a group of several inputs.
bool is_filled_stem(std::string_view stem);

/// The stem of a shard's file name `<stem>-<digits>.h5`; empty if it is not of that form.
std::string shard_stem(const std::filesystem::path& path);

}  // namespace t2r::data
