#pragma once

#include <cstdint>
#include <filesystem>
#include <functional>
#include <map>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <string_view>

namespace t2r {

inline constexpr const char* kManifestFile = "manifest.json";

/// A file, as a manifest knows it.
struct FileRecord {
  uint64_t num_bytes = 0;
  std::string hash;  ///< XXH3-128, 32 lower-case hexadecimal digits

  bool operator==(const FileRecord&) const = default;
};

/// The manifest.json of a folder that t2r writes: size and hash of every file, facts of the
/// writer's own, and a hash over the manifest itself, so that any changed byte in it is seen.
///
/// Text: {"version": 2, <fields>, "files": {NAME: {"bytes", "xxh3_128"}}, "manifest_xxh3_128"},
/// indented by two spaces, "\n" behind it; the last value is the hash of the text with zeros in its
/// place. data/gguf_to_hugging_face.py writes it as well.
struct FolderManifest {
  nlohmann::ordered_json fields = nlohmann::ordered_json::object();  ///< the writer's own
  std::map<std::string, FileRecord> files;                           ///< by name in the folder
  bool has_own_hash = true;  ///< false: version 1, which earlier versions of t2r wrote

  /// The file's text.
  /// @throws ContractError  if `fields` has a key of the manifest's own
  std::string to_text() const;
};

/// @param file  name for messages
/// @throws DataError  if it is damaged or breaks the format; names file and rule
FolderManifest parse_folder_manifest(std::string_view text, const std::string& file);

/// Whether a text called manifest.json is one of t2r's, whole or damaged, and not another
/// program's.
bool is_folder_manifest(std::string_view text);

/// The folder's manifest; none if there is no manifest.json or it is another program's.
/// @throws DataError        if it is damaged
/// @throws UnreadableError  if it is there and cannot be read
std::optional<FolderManifest> find_folder_manifest(const std::filesystem::path& folder);

/// The manifest of a folder that t2r wrote, which must be there.
/// @throws DataError        if it is missing or damaged
/// @throws UnreadableError  if it is there and cannot be read
FolderManifest read_folder_manifest(const std::filesystem::path& folder);

/// Hashes every file of `folder` and writes its manifest, durably; what is returned has been read
/// back from the file.
/// @throws WriteError  if it cannot be written, or does not come back as it was written
FolderManifest write_folder_manifest(const std::filesystem::path& folder,
                                     nlohmann::ordered_json fields);

/// Writes a manifest as it is, durably, in place of the folder's; read back as above.
void replace_folder_manifest(const std::filesystem::path& folder, const FolderManifest& manifest);

/// Compares a file with its record: first the size, then the content.
/// @throws DataError        if it is missing or differs; names it
/// @throws UnreadableError  if it cannot be read
void check_file(const std::filesystem::path& path, const FileRecord& record);

/// Compares with their folder's manifest those files that it lists, that are there, and that
/// `is_read` names: the ones about to be read. Without a manifest of t2r's nothing is compared.
/// @param is_needed  names those that must be there where they are listed: a reader that does
///                   without them would go on with other results
/// @throws DataError, UnreadableError  as check_file(), and what to do about it
void verify_listed_files(const std::filesystem::path& folder,
                         const std::function<bool(const std::string&)>& is_read,
                         const std::function<bool(const std::string&)>& is_needed);

}  // namespace t2r
