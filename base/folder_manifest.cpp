#include "base/folder_manifest.h"

#include <algorithm>
#include <cerrno>
#include <system_error>

#include "base/durable_file.h"
#include "base/error.h"
#include "base/hash.h"
#include "base/json.h"

namespace t2r {
namespace {

namespace fs = std::filesystem;
using Json = nlohmann::ordered_json;

constexpr int kVersion = 2;
constexpr size_t kHashDigits = 32;
constexpr size_t kMaxBytes = 16 << 20;
constexpr const char* kVersionKey = "version";
constexpr const char* kFilesKey = "files";
constexpr const char* kBytesKey = "bytes";
constexpr const char* kHashKey = "xxh3_128";
constexpr const char* kOwnHashKey = "manifest_xxh3_128";
constexpr std::string_view kBeginning = "{\n  \"version\": 2,\n";

/// The text behind the own hash, and in front of it from its key on.
constexpr std::string_view kEnd = "\"\n}\n";
const std::string kBeforeHash = std::string("  \"") + kOwnHashKey + "\": \"";

bool is_hash(std::string_view text) {
  const auto is_digit = [](char c) { return (c >= '0' && c <= '9') || (c >= 'a' && c <= 'f'); };
  return text.size() == kHashDigits && std::all_of(text.begin(), text.end(), is_digit);
}

bool is_plain_name(const std::string& name) {
  return !name.empty() && name != "." && name != ".." && name != kManifestFile &&
         name.find('/') == std::string::npos && name.find('\0') == std::string::npos;
}

/// Where the 32 digits of the own hash begin; none if the text does not end as a manifest does.
std::optional<size_t> own_hash_position(std::string_view text) {
  const size_t num_behind = kHashDigits + kEnd.size();
  if (text.size() < num_behind + kBeforeHash.size() || !text.ends_with(kEnd)) return std::nullopt;
  const size_t position = text.size() - num_behind;
  if (!text.substr(0, position).ends_with(kBeforeHash)) return std::nullopt;
  return position;
}

std::string own_hash(std::string_view text, size_t position) {
  Hasher hasher;
  hasher.update(text.substr(0, position));
  hasher.update(std::string(kHashDigits, '0'));
  hasher.update(text.substr(position + kHashDigits));
  return hasher.hex();
}

std::map<std::string, FileRecord> parse_files(const Json& files, const std::string& file) {
  std::map<std::string, FileRecord> records;
  if (!files.is_object()) throw DataError(concat(file, ": damaged: ", kFilesKey, " is no object"));
  for (const auto& [name, entry] : files.items()) {
    const int64_t num_bytes = integer_of(entry.at(kBytesKey)).value_or(-1);
    FileRecord record{static_cast<uint64_t>(num_bytes), entry.at(kHashKey).get<std::string>()};
    if (num_bytes < 0 || !is_hash(record.hash) || !is_plain_name(name))
      throw DataError(concat(file,
                             ": damaged: ",
                             kFilesKey,
                             " must hold plain names, each with ",
                             kBytesKey,
                             " and 32 hexadecimal digits"));
    records.emplace(name, std::move(record));
  }
  return records;
}

/// What manifest.json of a folder holds; none if it is not there.
std::optional<std::string> read_text(const fs::path& folder) {
  const fs::path file = folder / kManifestFile;
  std::error_code error;
  const fs::file_status status = fs::status(file, error);
  if (status.type() == fs::file_type::not_found) return std::nullopt;
  if (error) throw_read_error(file, "look at", error.value());
  if (regular_file_size(file) > kMaxBytes) return std::nullopt;  // not one of t2r's
  return read_file(file);
}

}  // namespace

std::string FolderManifest::to_text() const {
  Json all = {{kVersionKey, kVersion}};
  for (const auto& [key, value] : fields.items()) {
    require(key != kVersionKey && key != kFilesKey && key != kOwnHashKey,
            "a manifest has this key of its own: " + key);
    all[key] = value;
  }
  all[kFilesKey] = Json::object();
  for (const auto& [name, record] : files)
    all[kFilesKey][name] = {{kBytesKey, record.num_bytes}, {kHashKey, record.hash}};
  all[kOwnHashKey] = std::string(kHashDigits, '0');
  std::string text = all.dump(2, ' ', false, Json::error_handler_t::replace) + "\n";
  const std::optional<size_t> position = own_hash_position(text);
  require(position.has_value(), "a manifest's text must end with its own hash");
  text.replace(*position, kHashDigits, own_hash(text, *position));
  return text;
}

FolderManifest parse_folder_manifest(std::string_view text, const std::string& file) {
  const std::optional<size_t> position = own_hash_position(text);
  if (position.has_value() && text.substr(*position, kHashDigits) != own_hash(text, *position))
    throw DataError(concat(file, ": damaged: it does not match its own hash"));
  FolderManifest manifest;
  manifest.has_own_hash = position.has_value();
  Json all = parse_json(text, file);
  try {
    const int64_t version = integer_of(all.at(kVersionKey)).value_or(0);
    if (version > kVersion && manifest.has_own_hash)
      throw DataError(concat(file,
                             ": version ",
                             version,
                             ", this t2r knows versions up to ",
                             kVersion,
                             "; use the t2r that wrote it, or a later one"));
    // A damaged manifest must not pass for one of the time before manifests had a hash.
    const bool looks_old = version == 1 && !all.contains(kOwnHashKey);
    if (manifest.has_own_hash ? version != kVersion : !looks_old)
      throw DataError(concat(file, ": damaged: it has lost its own hash or its version"));
    manifest.files = parse_files(all.at(kFilesKey), file);
  } catch (const Json::exception&) {
    throw DataError(concat(file, ": damaged: a field is missing or of another type"));
  }
  all.erase(kVersionKey);
  all.erase(kFilesKey);
  if (manifest.has_own_hash) all.erase(kOwnHashKey);
  manifest.fields = std::move(all);
  return manifest;
}

bool is_folder_manifest(std::string_view text) {
  const bool is_cut =
      kBeginning.starts_with(text.substr(0, kBeginning.size())) && text.size() < kBeginning.size();
  const bool is_zeroed = text.find_first_not_of('\0') == std::string_view::npos;
  return is_cut || is_zeroed || text.starts_with(kBeginning) ||
         text.find(kHashKey) != std::string_view::npos;
}

std::optional<FolderManifest> find_folder_manifest(const fs::path& folder) {
  const std::optional<std::string> text = read_text(folder);
  if (!text.has_value() || !is_folder_manifest(*text)) return std::nullopt;
  return parse_folder_manifest(*text, (folder / kManifestFile).string());
}

FolderManifest read_folder_manifest(const fs::path& folder) {
  const fs::path file = folder / kManifestFile;
  const std::optional<std::string> text = read_text(folder);
  if (!text.has_value()) throw DataError(concat(file.string(), ": missing, or not one of t2r's"));
  return parse_folder_manifest(*text, file.string());
}

FolderManifest write_folder_manifest(const fs::path& folder, Json fields) {
  FolderManifest manifest;
  manifest.fields = std::move(fields);
  try {
    for (const fs::directory_entry& entry : fs::directory_iterator(folder)) {
      const std::string name = entry.path().filename().string();
      if (name == kManifestFile || !entry.is_regular_file()) continue;
      manifest.files[name] = {fs::file_size(entry.path()), hash_file(entry.path())};
    }
  } catch (const fs::filesystem_error& error) {  // somebody else removes what is being written
    throw WriteError(concat(folder.string(), ": cannot list it: ", error.code().message()));
  }
  replace_folder_manifest(folder, manifest);
  return manifest;
}

void replace_folder_manifest(const fs::path& folder, const FolderManifest& manifest) {
  const fs::path file = folder / kManifestFile;
  const std::string text = manifest.to_text();
  const FolderManifest parsed = parse_folder_manifest(text, file.string());
  require(parsed.files == manifest.files, "a manifest must be read as it was written");
  write_file_durably(file, text);
  if (read_file(file) != text)
    throw WriteError(concat(file.string(), ": the disk gives other bytes than were written"));
}

void check_file(const fs::path& path, const FileRecord& record) {
  const uint64_t size = regular_file_size(path);
  if (size != record.num_bytes)
    throw DataError(
        concat(path.string(), ": ", size, " bytes, the manifest says ", record.num_bytes));
  if (hash_file(path) != record.hash)
    throw DataError(concat(path.string(), ": content does not match the manifest's hash"));
}

void verify_listed_files(const fs::path& folder,
                         const std::function<bool(const std::string&)>& is_read,
                         const std::function<bool(const std::string&)>& is_needed) {
  try {
    const std::optional<FolderManifest> manifest = find_folder_manifest(folder);
    if (!manifest.has_value()) return;
    for (const auto& [name, record] : manifest->files) {
      std::error_code ignored;
      const fs::path file = folder / name;
      const bool is_gone = fs::status(file, ignored).type() == fs::file_type::not_found;
      if (is_gone && is_needed(name))
        throw DataError(concat(file.string(), ": missing, and the manifest lists it"));
      if (is_read(name) && !is_gone) check_file(file, record);
    }
  } catch (const UnreadableError&) {
    throw;
  } catch (const DataError& error) {
    throw DataError(concat(error.what(),
                           ". Take a whole copy; if you changed the file yourself, remove ",
                           (folder / kManifestFile).string(),
                           ", which lists what was written"));
  }
}

}  // namespace t2r
