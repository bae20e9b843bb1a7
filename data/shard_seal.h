#pragma once

#include <cstdint>
#include <filesystem>
#include <string>

#include "data/read_only_file.h"

namespace t2r::data {

/// Bytes in front of a shard's HDF5 data: a user block, which HDF5 skips. It begins with the lines
///   t2r shard 1
///   bytes N       of the whole file
///   xxh3-128 HEX  of everything behind the user block
/// and is filled with zeros. So a shard can be checked whole before the HDF5 library parses any of
/// it. Shards of earlier versions have none: their HDF5 data begin the file.
inline constexpr int64_t kSealBytes = 512;

/// Writes the seal of a file that has kSealBytes unused bytes in front.
/// @throws WriteError
void seal_shard(const std::filesystem::path& path);

/// What a shard's first bytes say; no seal: an earlier version's shard.
struct ShardSeal {
  bool is_sealed = false;
  std::string hash;  // of everything behind the user block
};

/// Reads the first bytes of a file and refuses what cannot be a whole shard: another kind of file,
/// a changed seal, a size that is not the file's.
/// @throws DataError  naming the file, and what it seems to be
ShardSeal read_seal(const ReadOnlyFile& file);

/// Reads a sealed file whole. @throws DataError  if its hash is not the seal's
void verify_seal(const ReadOnlyFile& file, const ShardSeal& seal);

}  // namespace t2r::data
